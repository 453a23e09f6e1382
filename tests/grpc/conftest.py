"""What the tests of a running daemon share."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator

import pytest

from tests.daemon import Daemon


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """One daemon for the tests of a file; each leaves it without watches."""
    with Daemon("-log=json", "-reflection") as daemon:
        yield daemon


class Workload:
    """Processes that the daemon is told to watch by their pid; they see the root that we see."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> int:
        """Start one and return its pid."""
        self._processes.append(subprocess.Popen(["sleep", "infinity"]))
        return self._processes[-1].pid

    def end(self, pid: int) -> None:
        """End one, and take its status."""
        process = next(process for process in self._processes if process.pid == pid)
        process.kill()
        process.wait()

    def end_all(self) -> None:
        """End all."""
        for process in self._processes:
            process.kill()
            process.wait()


@pytest.fixture
def workload() -> Iterator[Workload]:
    workload = Workload()
    yield workload
    workload.end_all()


@pytest.fixture
def pod(workload: Workload) -> Callable[[], int]:
    """Start a process to be watched, and return its pid."""
    return workload.start
