"""The orderly end: exit 0 within five seconds, whatever is open or stuck."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from argusd.proto import argus_pb2
from tests.daemon import COMMAND, ROOT, WAIT_S, Daemon
from tests.grpc.conftest import Workload

STOP_S: Final = 5.0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_exits_0(number: signal.Signals) -> None:
    with Daemon() as daemon:
        daemon.process.send_signal(number)
        assert daemon.process.wait(STOP_S) == 0


def test_a_second_signal_changes_nothing() -> None:
    with Daemon() as daemon:
        stub: Any = health_pb2_grpc.HealthStub(daemon.channel)
        states = stub.Watch(health_pb2.HealthCheckRequest(), timeout=WAIT_S)
        assert next(states).status == health_pb2.HealthCheckResponse.SERVING
        daemon.process.send_signal(signal.SIGTERM)
        assert next(states).status == health_pb2.HealthCheckResponse.NOT_SERVING
        # The open stream of health holds the orderly end up for a while.
        daemon.process.send_signal(signal.SIGINT)
        assert daemon.process.wait(STOP_S) == 0


def test_open_streams_are_ended_with_ok(pod: Callable[[], int], tmp_path: Path) -> None:
    with Daemon() as daemon:
        daemon.create_watch(pod(), str(tmp_path), event=["create"])
        stream = daemon.stub.RecordMetrics(argus_pb2.Empty(), timeout=WAIT_S)
        stream.initial_metadata()
        assert daemon.stop(STOP_S) == 0
        assert list(stream) == []
        assert stream.code() == grpc.StatusCode.OK


def test_events_before_the_signal_are_reported_and_counted(pod: Callable[[], int], tmp_path: Path) -> None:
    files = 2000
    with Daemon("-log=json") as daemon:
        daemon.create_watch(pod(), str(tmp_path), event=["create"])
        stream = daemon.stub.RecordMetrics(argus_pb2.Empty(), timeout=WAIT_S)
        stream.initial_metadata()
        for number in range(files):
            (tmp_path / str(number)).touch()
        assert daemon.stop(STOP_S) == 0
        assert len(daemon.events) == files
        assert len(list(stream)) == files


def test_a_stream_that_nobody_reads_does_not_hold_it_up(pod: Callable[[], int], tmp_path: Path) -> None:
    with Daemon() as daemon:
        daemon.create_watch(pod(), str(tmp_path), event=["open", "closewrite"])
        stream = daemon.stub.RecordMetrics(argus_pb2.Empty(), timeout=WAIT_S)
        stream.initial_metadata()
        for number in range(20_000):
            (tmp_path / str(number % 100)).touch()
        assert daemon.stop(STOP_S) == 0


def stopped(daemon: Daemon) -> bool:
    """Whether the log says so. What was dropped of it meanwhile may be told after that."""
    return any('"message":"Stopped"' in line for line in daemon.lines[-3:])


@contextlib.contextmanager
def flood(folder: Path) -> Iterator[None]:
    writes = 'while :; do : > "$0/a"; : > "$0/b"; done'
    floods = [subprocess.Popen(["sh", "-c", writes, folder]) for _ in range(4)]
    try:
        yield
    finally:
        for process in floods:
            process.kill()
            process.wait()


def test_events_without_end_do_not_hold_it_up(pod: Callable[[], int], tmp_path: Path) -> None:
    with Daemon("-log=json") as daemon:
        daemon.create_watch(pod(), str(tmp_path), event=["all"])
        with flood(tmp_path):
            daemon.wait_for_text('"event":"CLOSE_WRITE"')
            assert daemon.stop(STOP_S) == 0
        assert stopped(daemon)


def test_containers_that_end_with_it_do_not_hurt(workload: Workload, tmp_path: Path) -> None:
    with Daemon("-log=json") as daemon:
        pods = [workload.start() for _ in range(40)]
        for number, pid in enumerate(pods):
            daemon.create_watch(pid, str(tmp_path), event=["all"], podName=f"pod{number}", name=f"w{number}")
        with flood(tmp_path):
            daemon.wait_for_text('"event":"CLOSE_WRITE"')
            daemon.process.send_signal(signal.SIGTERM)
            workload.end_all()
            assert daemon.stop(STOP_S) == 0
        assert stopped(daemon)


def test_health_says_not_serving_on_the_way_out() -> None:
    with Daemon() as daemon:
        stub: Any = health_pb2_grpc.HealthStub(daemon.channel)
        states = stub.Watch(health_pb2.HealthCheckRequest(service="argus.Argusd"), timeout=WAIT_S)
        assert next(states).status == health_pb2.HealthCheckResponse.SERVING
        daemon.process.send_signal(signal.SIGTERM)
        assert next(states).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert daemon.process.wait(STOP_S) == 0


def test_a_call_that_is_under_way_does_not_hold_it_up() -> None:
    with Daemon("-log=text", "-v=1") as daemon:
        call = daemon.stub.CreateWatch.future(
            argus_pb2.ArgusdConfig(
                cid=["0" * 64], subject=[argus_pb2.ArgusWatcherSubject(path=["/"], event=["create"])]
            ),
            timeout=WAIT_S,
        )
        assert daemon.state() == []  # served in order on one connection: the call above has begun
        assert daemon.stop(STOP_S) == 0
        assert call.exception(WAIT_S) is not None


def test_a_log_that_nobody_reads_does_not_hold_it_up(pod: Callable[[], int], tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/argusd.sock"
    folder = tmp_path / "watched"
    folder.mkdir()
    read_end, write_end = os.pipe()
    process = subprocess.Popen([*COMMAND, "-address", address, "-log_dir=", "-log=json"], stderr=write_end, cwd=ROOT)
    os.close(write_end)
    try:
        with grpc.insecure_channel(address) as channel:
            grpc.channel_ready_future(channel).result(WAIT_S)
            daemon = Daemon()
            daemon._channel = channel
            daemon.create_watch(pod(), str(folder), event=["create"])
            for number in range(5000):  # far more than a pipe holds
                (folder / str(number)).touch()
            assert len(daemon.state()) == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOP_S) == 0
    finally:
        process.kill()
        process.wait()
        os.close(read_end)


def test_a_log_whose_reader_has_gone_does_not_hurt(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/argusd.sock"
    read_end, write_end = os.pipe()
    process = subprocess.Popen([*COMMAND, "-address", address, "-log_dir="], stderr=write_end, cwd=ROOT)
    os.close(write_end)
    os.close(read_end)
    try:
        with grpc.insecure_channel(address) as channel:
            grpc.channel_ready_future(channel).result(WAIT_S)
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOP_S) == 0
    finally:
        process.kill()
        process.wait()


def test_the_socket_file_goes_with_the_daemon(tmp_path: Path) -> None:
    socket = tmp_path / "argusd.sock"
    with Daemon("-address", f"unix:{socket}") as daemon:
        assert socket.is_socket()
        assert daemon.stop(STOP_S) == 0
    assert not socket.exists()
