"""-state_dir: what was asked for outlives the daemon, as long as the containers run."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from argusd.proto import argus_pb2
from tests.daemon import Daemon, until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: fanotify, and the roots of other processes")

WATCHED: Final = 30
GUARDED: Final = 10
FLAGS: Final = ("-log=json", "-services=argus,janus")


@pytest.fixture
def pids() -> Iterator[list[int]]:
    """Processes that are watched by their pids."""
    with ExitStack() as stack:
        processes = [stack.enter_context(subprocess.Popen(["sleep", "3600"])) for _ in range(WATCHED)]
        for process in processes:
            stack.callback(process.kill)
        yield [process.pid for process in processes]


@pytest.fixture
def folders(tmp_path: Path, pids: list[int]) -> list[Path]:
    made = [tmp_path / f"folder-{number}" for number in range(len(pids))]
    for folder in made:
        folder.mkdir()
        (folder / "secret").touch()
    return made


def state_file(directory: Path) -> Path:
    return directory / "argus-janus.state"


def test_thirty_watches_and_ten_guards_outlive_a_kill(tmp_path: Path, pids: list[int], folders: list[Path]) -> None:
    directory = tmp_path / "state"
    flag = f"-state_dir={directory}"
    with Daemon(*FLAGS, flag) as daemon:
        for number, (pid, folder) in enumerate(zip(pids, folders, strict=True)):
            daemon.create_watch(pid, str(folder), event=["create"], podName=f"pod-{number}")
        for number in range(GUARDED):
            daemon.create_guard(pids[number], str(folders[number] / "secret"), podName=f"pod-{number}")
        watched, guarded = daemon.state(), daemon.guard_state()
        daemon.kill()
    assert state_file(directory).stat().st_mode & 0o777 == 0o600
    (folders[0] / "secret").read_bytes()  # nobody answers for it now
    with Daemon(*FLAGS, flag) as daemon:
        # The port is open: everything must be armed, before anybody has called.
        for number, folder in enumerate(folders):
            if number < GUARDED:
                with pytest.raises(PermissionError):
                    (folder / "secret").read_bytes()
            (folder / f"new-{number}").touch()
        until(lambda: len([event for event in daemon.events if event["event"] == "CREATE"]) == WATCHED, "all events")
        assert sorted(daemon.state()) == sorted(watched)
        assert sorted(daemon.guard_state()) == sorted(guarded)
        assert "Resumed 40 of 40" in daemon.wait_for_text("Resumed")
        before = len(daemon.lines)
        daemon.create_watch(pids[0], str(folders[0]), event=["create"], podName="pod-0")
        assert not [line for line in daemon.lines[before:] if "Starting" in line]


def test_what_was_destroyed_or_has_ended_is_not_taken_up(tmp_path: Path, pids: list[int], folders: list[Path]) -> None:
    flag = f"-state_dir={tmp_path / 'state'}"
    with Daemon(*FLAGS, flag) as daemon:
        for number in range(3):
            daemon.create_watch(pids[number], str(folders[number]), event=["create"], podName=f"pod-{number}")
        daemon.stub.DestroyWatch(argus_pb2.ArgusdConfig(nodeName="node1", podName="pod-1"), timeout=10)
    os.kill(pids[2], 9)
    with Daemon(*FLAGS, flag) as daemon:
        assert [pod for _, pod, _ in daemon.state()] == ["pod-0"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff" * 100, b'{"version": 99}', b"[" * 100_000])
def test_a_damaged_file_is_one_error_and_set_aside(tmp_path: Path, content: bytes) -> None:
    directory = tmp_path / "state"
    directory.mkdir(mode=0o700)
    state_file(directory).write_bytes(content)
    with Daemon(*FLAGS, f"-state_dir={directory}") as daemon:
        errors = [line for line in daemon.lines if '"ERROR"' in line]
        assert len(errors) == 1
        assert "is damaged" in errors[0]
        assert (directory / "argus-janus.damaged").read_bytes() == content


def test_nothing_planted_is_followed(tmp_path: Path, pids: list[int], folders: list[Path]) -> None:
    directory, victim = tmp_path / "state", tmp_path / "victim"
    directory.mkdir(mode=0o700)
    victim.write_text("precious")
    state_file(directory).symlink_to(victim)
    (directory / "argus-janus.state.new").symlink_to(victim)
    with Daemon(*FLAGS, f"-state_dir={directory}") as daemon:
        daemon.wait_for_text("The state cannot be kept")
        daemon.create_watch(pids[0], str(folders[0]))
    assert victim.read_text() == "precious"


def test_a_directory_that_others_can_write_to_is_refused(tmp_path: Path, pids: list[int], folders: list[Path]) -> None:
    directory = tmp_path / "state"
    directory.mkdir()
    directory.chmod(0o777)
    with Daemon(*FLAGS, f"-state_dir={directory}") as daemon:
        assert "closed to other writers" in daemon.wait_for_text("The state cannot be kept")
        daemon.create_watch(pids[0], str(folders[0]))
    assert not list(directory.iterdir())
