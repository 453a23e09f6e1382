"""Processes that end, or seem to, whether a pidfd holds them or their folder in /proc."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from argusd._records import Encoder
from argusd.containers import open_pid
from argusd.templates import DEFAULT_WATCH_TEMPLATE
from tests.kernel.watching import ALL, Watching
from tests.waiting import until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to look into processes")


def folder_of(pid: int) -> int:
    """What holds a process where there are no pidfds."""
    return os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY)


def subscribe(watching: Watching, pid: int, handle: int, folder: Path) -> int:
    return watching.engine.subscribe(
        Encoder(DEFAULT_WATCH_TEMPLATE.segments, "p", "n", "w", "c", []),
        watching.counter, pid, handle, [os.fsencode(folder)], ALL, [], False, True, 0, False,
    )  # fmt: skip


@pytest.mark.parametrize("hold", [os.pidfd_open, folder_of])
@pytest.mark.parametrize("state", ["zombie", "gone"])
def test_a_process_that_has_ended_cannot_be_watched(
    watching: Watching, folder: Path, hold: Callable[[int], int], state: str
) -> None:
    with subprocess.Popen(["sleep", "infinity"]) as process:
        handle = hold(process.pid)
        process.kill()
        if state == "gone":
            process.wait()
        else:
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        number = subscribe(watching, process.pid, handle, folder)
        os.close(handle)
        with pytest.raises(ProcessLookupError):
            watching.engine.arm(number)
    watching.engine.switch([], [number])


@pytest.mark.parametrize("hold", [os.pidfd_open, folder_of])
@pytest.mark.parametrize("name", ["sleep", ") Z 1 (", "x) Z", ")", "a\nb) X", "((((((((((((((("])
def test_a_process_that_calls_itself_dead_is_watched(
    watching: Watching, folder: Path, hold: Callable[[int], int], name: str
) -> None:
    script = 'printf "%s" "$0" > /proc/$$/comm; echo ready; read x'
    with subprocess.Popen(["sh", "-c", script, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert Path(f"/proc/{process.pid}/comm").read_text()[:-1] == name
        handle = hold(process.pid)
        number = subscribe(watching, process.pid, handle, folder)
        os.close(handle)
        assert watching.engine.arm(number).errors == (0,)
        assert process.stdin is not None
        process.stdin.close()
    watching.engine.switch([], [number])


MAIN_THREAD_ENDS = """
import ctypes, threading
threading.Thread(target=threading.Event().wait).start()
print("ready", flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""


@pytest.mark.parametrize("hold", [os.pidfd_open, folder_of])
def test_a_process_lives_on_without_its_main_thread(
    watching: Watching, folder: Path, hold: Callable[[int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "pidfd_open", hold)
    with subprocess.Popen([sys.executable, "-c", MAIN_THREAD_ENDS], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        until(lambda: not Path(f"/proc/{process.pid}/root/.").exists(), "the end of its main thread")
        container = open_pid(process.pid)
        number = subscribe(watching, process.pid, container.pidfd, folder)
        assert watching.engine.arm(number).errors == (0,)
        assert container.alive()
        process.kill()
        until(lambda: not container.alive(), "its end")
        with pytest.raises(ProcessLookupError):
            watching.engine.arm(number)
        container.close()
    watching.engine.switch([], [number])
