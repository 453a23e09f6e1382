"""A service manager is told when the daemon is ready, that it is alive, and when it stops."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon import WAIT_S, Daemon


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(WAIT_S)
        yield manager


def until(manager: socket.socket, state: bytes) -> list[bytes]:
    """What comes before ``state`` does."""
    return list(iter(lambda: manager.recv(4096), state))


def test_ready_alive_stopping(manager: socket.socket) -> None:
    environment = {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "300000", "WATCHDOG_PID": "1"}
    with Daemon(environment=environment) as daemon:
        assert until(manager, b"READY=1") == []
        assert [manager.recv(4096) for _ in range(3)] == [b"WATCHDOG=1"] * 3
        daemon.process.send_signal(signal.SIGTERM)
        assert set(until(manager, b"STOPPING=1")) <= {b"WATCHDOG=1"}
        assert daemon.process.wait(WAIT_S) == 0


def test_no_signs_of_life_where_none_are_wanted(manager: socket.socket) -> None:
    with Daemon(environment={"NOTIFY_SOCKET": manager.getsockname()}) as daemon:
        assert until(manager, b"READY=1") == []
        daemon.process.send_signal(signal.SIGTERM)
        assert until(manager, b"STOPPING=1") == []


def test_a_manager_that_is_gone_is_a_warning(tmp_path: Path) -> None:
    with Daemon(environment={"NOTIFY_SOCKET": str(tmp_path / "nobody")}) as daemon:
        daemon.wait_for(lambda line: "Cannot tell systemd READY=1" in line)
