"""Descriptors: the standard ones closed, hardly any, and clients that take all they can get."""

from __future__ import annotations

import contextlib
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.daemon import COMMAND, ROOT, WAIT_S, Daemon, until

CONNECTIONS = 1500
SMALL_LIMIT = 1024


def limited(descriptors: int, *, soft: int | None = None) -> tuple[str, ...]:
    """The daemon's command with a limit of descriptors, hard and soft."""
    return ("prlimit", f"--nofile={descriptors if soft is None else soft}:{descriptors}", *COMMAND)


def open_descriptors(pid: int) -> dict[int, str]:
    """What each descriptor of a process is."""
    found = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found[int(entry.name)] = str(entry.readlink())
    return found


def check_health(channel: grpc.Channel) -> int:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    status: int = stub.Check(health_pb2.HealthCheckRequest(), timeout=WAIT_S, wait_for_ready=True).status
    return status


@pytest.fixture
def crowd() -> Iterator[Callable[[str], None]]:
    """Open connections to an address that say nothing, as many as the daemon takes."""
    with contextlib.ExitStack() as sockets:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

        def connect(address: str) -> None:
            host, _, port = address.rpartition(":")
            for _ in range(CONNECTIONS):
                sockets.enter_context(socket.create_connection((host, int(port)), timeout=WAIT_S))

        yield connect
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_closed_standard_descriptors_are_dev_null(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "argusd", "-address=127.0.0.1:0", f"-log_dir={tmp_path}", "-log=json"]
    shell = ["sh", "-c", 'exec "$@" 0<&- 1>&- 2>&-', "sh", *command]
    log = tmp_path / "argusd.INFO"
    with subprocess.Popen(shell, cwd=ROOT) as process:
        until(lambda: log.exists() and "Server listening" in log.read_text(), "the daemon serves")
        found = open_descriptors(process.pid)
        process.terminate()
        assert process.wait(WAIT_S) == 0
    assert [found[fd] for fd in range(3)] == ["/dev/null"] * 3
    assert "Stopped" in log.read_text()


@pytest.mark.parametrize("descriptors", [12, 20, 40])
def test_too_few_descriptors_are_an_error(descriptors: int) -> None:
    command = [*limited(descriptors), "-address=127.0.0.1:0", "-log_dir="]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith(f"ERROR: Cannot start with at most {descriptors} open files")
    assert len(result.stderr.splitlines()) == 1


def test_the_soft_limit_is_raised_to_the_hard_one() -> None:
    with Daemon("-log=text", command=limited(4096, soft=256)) as daemon:
        assert resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE) == (4096, 4096)
    assert not any("open files are allowed" in line for line in daemon.lines)


def test_a_small_hard_limit_is_one_warning() -> None:
    with Daemon("-log=text", command=limited(SMALL_LIMIT)) as daemon:
        pass
    assert sum(f"At most {SMALL_LIMIT} open files are allowed" in line for line in daemon.lines) == 1


@pytest.mark.skipif(
    resource.getrlimit(resource.RLIMIT_NOFILE)[1] < CONNECTIONS + 200, reason="needs descriptors for the clients"
)
def test_connections_that_say_nothing_leave_descriptors_for_everything_else(
    crowd: Callable[[str], None], pod: Callable[[], int], tmp_path: Path
) -> None:
    with Daemon("-log=json", command=limited(SMALL_LIMIT)) as daemon:
        assert check_health(daemon.channel) == health_pb2.HealthCheckResponse.SERVING
        crowd(daemon.address)
        assert len(open_descriptors(daemon.pid)) < SMALL_LIMIT // 2
        assert check_health(daemon.channel) == health_pb2.HealthCheckResponse.SERVING
        daemon.create_watch(pod(), str(tmp_path))
        # Their places are free again after a few seconds, for clients that come later.
        with daemon.new_channel() as late:
            assert check_health(late) == health_pb2.HealthCheckResponse.SERVING
    assert "Stopped" in daemon.lines[-1]
