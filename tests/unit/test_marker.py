"""The marker: what it says, and what it does not touch."""

from __future__ import annotations

import json
import logging
import os
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from argusd import marker, processes
from argusd.marker import Marker, MarkerFile
from tests.waiting import LOOP_TIMEOUT_S, until_in_loop

PODS = ["(p1:n)", "(p2:n)"]


def own_marker(folder: Path) -> dict[str, object]:
    """What a marker with :data:`PODS` holds, written by us."""
    MarkerFile(str(folder)).write(PODS)
    content: dict[str, object] = json.loads((folder / marker.FILE_NAME).read_text())
    return content


def rewrite(folder: Path, content: object) -> Path:
    path = folder / marker.FILE_NAME
    path.write_text(json.dumps(content))
    return path


async def look_back(folder: Path, caplog: pytest.LogCaptureFixture) -> list[str]:
    """What a daemon says at its start."""
    caplog.set_level(logging.DEBUG, "argusd")
    caplog.clear()
    await Marker(str(folder), list).look_back()
    return [record.message for record in caplog.records]


@pytest.fixture
def gone() -> int:
    """The pid of a process that has ended."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


@pytest.fixture
def running() -> Iterator[int]:
    """The pid of a process that runs."""
    with subprocess.Popen(["sleep", "infinity"]) as process:
        yield process.pid
        process.kill()


@pytest.mark.asyncio
async def test_it_stands_as_long_as_something_is_guarded(tmp_path: Path) -> None:
    guarded: list[str] = []
    kept, path = Marker(str(tmp_path), lambda: guarded), tmp_path / marker.FILE_NAME
    await kept.update()
    assert not path.exists()
    guarded += PODS
    await kept.update()
    assert json.loads(path.read_text())["guarded"] == PODS
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    del guarded[0]
    await kept.update()
    assert json.loads(path.read_text())["guarded"] == PODS[1:]
    assert path.stat().st_size == 4096
    guarded.clear()
    await kept.update()
    assert not path.exists()
    await kept.close()


@pytest.mark.asyncio
async def test_an_orderly_end_takes_it_away_for_good(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = Marker(str(tmp_path), lambda: PODS)
    await kept.update()
    await kept.close()
    await kept.update()
    assert not (tmp_path / marker.FILE_NAME).exists()
    assert await look_back(tmp_path, caplog) == []


@pytest.mark.asyncio
async def test_one_that_is_left_behind_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, gone: int
) -> None:
    path = rewrite(tmp_path, {**own_marker(tmp_path), "pid": gone, "more": 3})
    os.utime(path, (0, 1_000_000_000))
    (line,) = await look_back(tmp_path, caplog)
    assert line == (
        f"The daemon with pid {gone} did not end in order: since 2001-09-09T01:46:40Z, or up to 10 s later, what it "
        "guarded is open to everybody, until it is guarded again: (p1:n), (p2:n) and 3 more"
    )
    assert caplog.records[0].levelno == logging.WARNING
    assert await look_back(tmp_path, caplog) == []


@pytest.mark.asyncio
async def test_a_reused_pid_is_another_process(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rewrite(tmp_path, {**own_marker(tmp_path), "pid": 1, "start_time": 1_000_000_000_000})
    assert "pid 1 did not end in order" in (await look_back(tmp_path, caplog))[0]


@pytest.mark.asyncio
async def test_after_a_reboot_there_is_nothing_to_tell(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = rewrite(tmp_path, {**own_marker(tmp_path), "pid": 1, "boot": "another"})
    assert await look_back(tmp_path, caplog) == []
    assert not path.exists()


@pytest.mark.asyncio
async def test_that_of_a_running_daemon_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, running: int
) -> None:
    stat_of_process = processes.stat(running)
    assert stat_of_process
    path = rewrite(tmp_path, {**own_marker(tmp_path), "pid": running, "start_time": stat_of_process.start_time})
    before = path.read_text()
    other = Marker(str(tmp_path), lambda: PODS)
    await other.look_back()
    await other.update()
    await other.close()
    assert path.read_text() == before
    (line,) = [record.message for record in caplog.records]
    assert f"it is that of the daemon with pid {running}, which runs" in line


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"pid": 1}', '{"pid": "x"}', '{"pid":1,"start_time":1,"boot":"b","guarded":7,"more":0}', "\xff"],
)
@pytest.mark.asyncio
async def test_what_nobody_can_read_is_tidied_up(tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str) -> None:
    path = tmp_path / marker.FILE_NAME
    path.write_text(text, encoding="latin-1")
    assert await look_back(tmp_path, caplog) == []
    assert not path.exists()


@pytest.mark.parametrize("planted", ["symlink", "fifo", "directory", "hard link", "of somebody else"])
@pytest.mark.asyncio
async def test_what_was_planted_is_neither_followed_nor_touched(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, planted: str
) -> None:
    precious, path = tmp_path / "precious", tmp_path / marker.FILE_NAME
    precious.write_text("data")
    match planted:
        case "symlink":
            path.symlink_to(precious)
        case "fifo":
            os.mkfifo(path)
        case "directory":
            path.mkdir()
        case "hard link":
            path.hardlink_to(precious)
        case _:
            if os.geteuid() != 0:
                pytest.skip("needs root: a file of another user")
            path.write_text("theirs")
            os.chown(path, 65534, 65534)
    before = path.lstat()
    kept = Marker(str(tmp_path), lambda: PODS)
    await kept.look_back()
    await kept.update()
    await kept.close()
    assert (path.lstat().st_mode, path.lstat().st_ino, path.lstat().st_size) == (
        before.st_mode,
        before.st_ino,
        before.st_size,
    )
    assert precious.read_text() == "data"
    assert len(caplog.records) == 1
    assert f"No marker {path}" in caplog.text


@pytest.mark.asyncio
async def test_without_a_folder_there_is_no_file_and_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    kept = Marker("", lambda: PODS)
    await kept.look_back()
    await kept.update()
    await kept.close()
    assert not caplog.records


@pytest.mark.asyncio
async def test_a_folder_that_is_missing_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = Marker(str(tmp_path / "missing"), lambda: PODS)
    await kept.look_back()
    await kept.update()
    await kept.update()
    await kept.close()
    assert len(caplog.records) == 1


@pytest.mark.asyncio
async def test_a_folder_that_does_not_answer_is_given_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(marker, "PATIENCE_S", 0.01)
    answers = threading.Event()
    monkeypatch.setattr(MarkerFile, "write", lambda *_: answers.wait(LOOP_TIMEOUT_S))
    kept = Marker(str(tmp_path), lambda: PODS)
    await kept.update()
    answers.set()
    await kept.update()
    await kept.close()
    assert len(caplog.records) == 1
    assert "does not answer" in caplog.text


@pytest.mark.asyncio
async def test_one_that_was_tidied_up_comes_back(tmp_path: Path) -> None:
    kept, path = Marker(str(tmp_path), lambda: PODS), tmp_path / marker.FILE_NAME
    await kept.update()
    path.unlink()
    await kept.update()
    assert path.exists()
    await kept.close()
    assert not path.exists()


@pytest.mark.asyncio
async def test_signs_of_life_are_given_and_what_ended_by_itself_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(marker, "SIGN_OF_LIFE_S", 0.01)
    guarded = list(PODS)
    kept, path = Marker(str(tmp_path), lambda: guarded), tmp_path / marker.FILE_NAME
    await kept.update()
    os.utime(path, (0, 0))
    await until_in_loop(lambda: path.stat().st_mtime > 0)
    guarded.clear()
    await until_in_loop(lambda: not path.exists())
    await until_in_loop(lambda: kept._signs is None)
    await kept.close()


def test_a_line_names_no_more_than_a_few() -> None:
    assert marker.listing([]) == ""
    assert marker.listing(PODS) == "(p1:n), (p2:n)"
    assert marker.listing(PODS, 3) == "(p1:n), (p2:n) and 3 more"
    assert marker.listing(["p"] * 500, 1) == f"{', '.join(['p'] * 20)} and 481 more"


def test_any_number_of_names_fits_into_one_page(tmp_path: Path) -> None:
    names = [f"({'é' * 1024}:{number})" for number in range(1000)]
    file = MarkerFile(str(tmp_path))
    file.write(names)
    content = json.loads(file.path.read_text())
    assert file.path.stat().st_size == 4096
    assert content["more"] + len(content["guarded"]) == 1000
    assert content["guarded"]
    assert all(len(name) <= 200 for name in content["guarded"])
    file.remove()
    file.remove()
