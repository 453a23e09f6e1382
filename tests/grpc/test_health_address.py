"""A second address that serves health alone, in plaintext: a kubelet holds no client certificate."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from argusd.proto import argus_pb2, argus_pb2_grpc
from tests.daemon import WAIT_S, Daemon, run_to_end
from tests.grpc.authority import Authority, Files

ON_ANY_PORT = "-health_address=127.0.0.1:0"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(*Files.make(Authority("ours"), tmp_path).flags(), ON_ANY_PORT) as daemon:
        yield daemon


@pytest.fixture
def probe(daemon: Daemon) -> Iterator[grpc.Channel]:
    """A plaintext channel to the second address."""
    line = daemon.wait_for(lambda line: "Health served on" in line)
    with grpc.insecure_channel(line.partition("Health served on ")[2].split()[0]) as channel:
        yield channel


@pytest.mark.parametrize("service", ["", "argus.Argusd"])
def test_a_daemon_with_tls_tells_its_health_without(probe: grpc.Channel, service: str) -> None:
    request = health_pb2.HealthCheckRequest(service=service)
    stub: Any = health_pb2_grpc.HealthStub(probe)
    assert stub.Check(request, timeout=WAIT_S).status == SERVING


def test_nothing_else_is_served_there(probe: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as failure:
        list(argus_pb2_grpc.ArgusdStub(probe).GetWatchState(argus_pb2.Empty(), timeout=WAIT_S))
    assert failure.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_an_end_is_told_there_too(daemon: Daemon, probe: grpc.Channel) -> None:
    stub: Any = health_pb2_grpc.HealthStub(probe)
    statuses = stub.Watch(health_pb2.HealthCheckRequest(), timeout=WAIT_S)
    assert next(statuses).status == SERVING
    daemon.process.send_signal(signal.SIGTERM)
    assert next(statuses).status == NOT_SERVING
    statuses.cancel()
    assert daemon.process.wait(WAIT_S) == 0


def test_an_address_in_use_ends_the_start() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        result = run_to_end("-address=127.0.0.1:0", "-log_dir=", f"-health_address={address}")
    assert result.returncode == 1
    assert f"Cannot listen on {address}: Address already in use" in result.stderr
