from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from argusd import unpacked

KEEP = "import sys, pathlib; from argusd import unpacked; unpacked.keep([pathlib.Path(sys.argv[1])]); print(); input()"


class Daemon:
    """A process that has unpacked itself into a folder."""

    def __init__(self, folder: Path) -> None:
        (folder / "sub" / "deeper").mkdir(parents=True)
        folder.chmod(0o700)
        for file in ("lib.so", "sub/deeper/lib.so"):
            (folder / file).write_text("x")
        (folder / "link").symlink_to("/etc")
        command = [sys.executable, "-c", KEEP, str(folder)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout
        assert self.process.stdout.readline()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path / "staticx-AbCdEf")
    yield daemon
    daemon.kill()


def test_what_a_killed_daemon_has_left_is_removed(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    daemon.kill()
    assert unpacked.remove_left(tmp_path) == ["staticx-AbCdEf"]
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    assert Path("/etc/passwd").exists()


def test_what_a_living_daemon_uses_stays(daemon: Daemon, tmp_path: Path) -> None:
    assert daemon.process.poll() is None
    assert unpacked.remove_left(tmp_path) == []
    assert (tmp_path / "staticx-AbCdEf" / "lib.so").exists()


def test_a_folder_without_the_mark_stays(tmp_path: Path) -> None:
    (tmp_path / "_MEIabc").mkdir(mode=0o700)
    assert unpacked.remove_left(tmp_path) == []
    assert (tmp_path / "_MEIabc").exists()


def test_a_folder_that_others_may_write_to_stays(daemon: Daemon, tmp_path: Path) -> None:
    daemon.kill()
    (tmp_path / "staticx-AbCdEf").chmod(0o777)
    assert unpacked.remove_left(tmp_path) == []


def test_a_link_is_not_followed(daemon: Daemon, tmp_path: Path) -> None:
    daemon.kill()
    folder = tmp_path / "elsewhere"
    (tmp_path / "staticx-AbCdEf").rename(folder)
    (tmp_path / "staticx-AbCdEf").symlink_to(folder)
    assert unpacked.remove_left(tmp_path) == []
    assert (folder / "lib.so").exists()


@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_a_mark_that_is_no_file_is_none(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "_MEIabc"
    folder.mkdir(mode=0o700)
    if kind == "link":
        (tmp_path / "file").touch()
        (folder / unpacked.MARK).symlink_to(tmp_path / "file")
    else:
        os.mkfifo(folder / unpacked.MARK)
    assert unpacked.remove_left(tmp_path) == []
    assert folder.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make what belongs to somebody else")
def test_what_somebody_else_owns_stays(daemon: Daemon, tmp_path: Path) -> None:
    daemon.kill()
    os.chown(tmp_path / "staticx-AbCdEf", 1234, 1234)
    assert unpacked.remove_left(tmp_path) == []


def test_a_folder_that_is_missing_is_no_error(tmp_path: Path) -> None:
    assert unpacked.remove_left(tmp_path / "missing") == []
