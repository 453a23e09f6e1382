"""A file system whose server does not answer holds up what needs it, and nothing else."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.daemon import Daemon, until
from tests.kernel.silent_fuse import OPERATIONS, SilentFileSystem

ANSWER_S = 5.0
STOP_S = 5.0
KILL_S = 2.0
ASKED = {"lookup", "getattr", "access", "opendir"}  # what a walk cannot do without, as long as it gets there

Pod = Callable[[], int]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    place = tmp_path / "silent"
    place.mkdir()
    return place


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """One of its own for each test, ended by it."""
    with Daemon("-log=json", "-services=argus,janus") as daemon:
        yield daemon


def mount(place: Path, mute: str, *, from_now: bool) -> SilentFileSystem:
    try:
        return SilentFileSystem(place, mute, from_now=from_now)
    except OSError as error:
        pytest.skip(f"no FUSE on this machine: {error}")


def hanging(daemon: Daemon) -> list[int]:
    """Processes of the daemon that wait for an answer of a FUSE server."""
    children = Path(f"/proc/{daemon.pid}/task").glob("*/children")
    pids = [int(pid) for child in children for pid in child.read_text().split()]
    return [pid for pid in pids if "request_wait_answer" in Path(f"/proc/{pid}/stack").read_text()]


def expect_service(daemon: Daemon, pid: int, folder: Path) -> None:
    """Events, requests and health go on for everybody else."""
    folder.mkdir()
    daemon.create_watch(pid, str(folder), name="other", podName="other", event=["create"], recursive=True)
    (folder / "new").mkdir()
    until(lambda: any(event["file"] == "new" for event in daemon.events), "an event beside the silence")
    (folder / "new/below").touch()
    until(lambda: any(event["file"] == "below" for event in daemon.events), "an event in what is new")
    health: Any = health_pb2_grpc.HealthStub(daemon.channel)
    status = health.Check(health_pb2.HealthCheckRequest(service="argus.Argusd"), timeout=ANSWER_S).status
    assert status == health_pb2.HealthCheckResponse.SERVING
    assert any(pod == "other" for _, pod, _ in daemon.state())


@pytest.mark.parametrize("mute", sorted(OPERATIONS))
@pytest.mark.parametrize("below", [False, True])
def test_silence_in_the_first_walk(daemon: Daemon, pod: Pod, place: Path, mute: str, below: bool) -> None:  # noqa: FBT001
    with mount(place, mute, from_now=True) as silent:
        watched = place.parent if below else place / "d"
        with contextlib.suppress(grpc.RpcError):
            daemon.create_watch(pod(), str(watched), name="silent", podName="silent", recursive=True)
        expect_service(daemon, pod(), place.parent / "beside")
        assert daemon.stop(STOP_S) == 0
        silent.end_server()


@pytest.mark.parametrize("mute", sorted(OPERATIONS))
def test_silence_in_a_later_walk(daemon: Daemon, pod: Pod, place: Path, mute: str) -> None:
    with mount(place, mute, from_now=False) as silent:
        daemon.create_watch(pod(), str(place), name="silent", podName="silent", recursive=True)
        silent.fall_silent()
        with mount(place, mute, from_now=True):  # over the other one, which the daemon notices
            if mute in ASKED:
                until(lambda: hanging(daemon), "a walker hangs")
            expect_service(daemon, pod(), place.parent / "beside")
            assert daemon.stop(STOP_S) == 0


@pytest.mark.parametrize("mute", ["lookup", "access", "opendir"])
def test_the_daemon_can_be_killed_and_lets_guarded_files_go(daemon: Daemon, pod: Pod, place: Path, mute: str) -> None:
    with mount(place, mute, from_now=True):
        guarded = place.parent / "guarded"
        guarded.mkdir()
        (guarded / "free").write_text("free")
        (guarded / "denied").write_text("denied")
        daemon.create_guard(pod(), str(guarded / "denied"))
        with contextlib.suppress(grpc.RpcError):
            daemon.create_watch(pod(), str(place.parent), name="silent", podName="silent", recursive=True)
        with pytest.raises(PermissionError):
            (guarded / "denied").read_text()
        assert (guarded / "free").read_text() == "free"
        daemon.process.send_signal(signal.SIGKILL)
        assert daemon.process.wait(KILL_S) == -signal.SIGKILL
        assert (guarded / "denied").read_text() == "denied"


def test_what_answers_again_is_watched(daemon: Daemon, pod: Pod, place: Path) -> None:
    with mount(place, "opendir", from_now=True) as silent:
        daemon.create_watch(pod(), str(place.parent), name="silent", podName="silent", recursive=True)
        daemon.wait_for_text("does not answer")
        silent.end_server()
        daemon.wait_for_text("is done")
