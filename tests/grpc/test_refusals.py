"""What the log and the client are told when a call, or the start, is refused."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from argusd.proto import argus_pb2, janus_pb2
from tests.daemon import COMMAND, WAIT_S, Daemon, run_to_end

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a PID namespace")


@pytest.fixture(scope="module")
def argusd() -> Iterator[Daemon]:
    with Daemon("-log=json") as daemon:
        yield daemon


def refused(call: Callable[[], object]) -> grpc.Call:
    """What a call fails with."""
    with pytest.raises(grpc.RpcError) as failure:
        call()
    error: Any = failure.value
    return error  # type: ignore[no-any-return]


def request(**fields: Any) -> argus_pb2.ArgusdConfig:
    subject = argus_pb2.ArgusWatcherSubject(path=["/x"], event=["create"])
    return argus_pb2.ArgusdConfig(nodeName="node1", podName="web-0", subject=[subject], **fields)


def test_a_container_that_is_not_found_is_one_warning_however_often_it_is_asked_for(argusd: Daemon) -> None:
    cid = secrets.token_hex(32)
    for _ in range(3):
        call = refused(lambda: argusd.stub.CreateWatch(request(name="w7", cid=[cid]), timeout=1))
        assert call.code() == grpc.StatusCode.NOT_FOUND
    record = json.loads(argusd.wait_for_text(cid))
    assert record["level"] == "WARNING"
    assert record["message"].startswith("CreateWatch failed for w7 (web-0:node1): NOT_FOUND: no running container")
    assert (record["pod"], record["node"], record["code"]) == ("web-0", "node1", "NOT_FOUND")
    assert argusd.state() == []
    assert sum(cid in line for line in argusd.lines) == 1


def test_a_bad_request_is_a_warning(argusd: Daemon) -> None:
    refused(lambda: argusd.stub.CreateWatch(request(name="bad"), timeout=WAIT_S))
    record = json.loads(argusd.wait_for_text("CreateWatch failed for bad (web-0:node1): INVALID_ARGUMENT"))
    assert record["level"] == "WARNING"
    assert not any("Starting" in line for line in argusd.lines)


def test_the_same_request_again_is_not_called_an_update(
    argusd: Daemon, pod: Callable[[], int], tmp_path: os.PathLike[str]
) -> None:
    pid = pod()
    for _ in range(2):
        argusd.create_watch(pid, str(tmp_path), podName="same")
    argusd.create_watch(pid, str(tmp_path), podName="same", event=["create"])
    argusd.wait_for_text("Updating `inotify` watcher (same:node1)")
    assert sum("(same:node1)" in line and "Updating" in line for line in argusd.lines) == 1


def test_a_service_that_is_not_served_names_the_flag(argusd: Daemon) -> None:
    call = refused(lambda: argusd.guards.CreateGuard(janus_pb2.JanusdConfig(), timeout=WAIT_S))
    assert call.code() == grpc.StatusCode.UNIMPLEMENTED
    assert "-services=janus" in (call.details() or "")
    call = refused(lambda: list(argusd.guards.GetGuardState(janus_pb2.Empty(), timeout=WAIT_S)))
    assert "-services=janus" in (call.details() or "")


def test_health_of_an_unknown_service_names_those_that_are_known(argusd: Daemon) -> None:
    stub: Any = health_pb2_grpc.HealthStub(argusd.channel)
    call = refused(lambda: stub.Check(health_pb2.HealthCheckRequest(service="x"), timeout=WAIT_S))
    assert call.code() == grpc.StatusCode.NOT_FOUND
    assert "argus.Argusd" in (call.details() or "")


@pytest.mark.parametrize("method", ["Check", "Watch"])
def test_a_malformed_health_request_is_the_clients_mistake_and_no_traceback(argusd: Daemon, method: str) -> None:
    before = len(argusd.lines)
    make = argusd.channel.unary_unary if method == "Check" else argusd.channel.unary_stream
    ask: Any = make(f"/grpc.health.v1.Health/{method}")
    for _ in range(20):
        call = refused(lambda: list(ask(b"\xff\xff\xff", timeout=WAIT_S)))
        assert call.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert argusd.state() == []
    assert len(argusd.lines) - before <= 1


def test_start_errors_have_the_style_of_the_log() -> None:
    result = run_to_end("-log=json", "-log_dir=", "-address=192.0.2.1:50051")
    record = json.loads(result.stderr.splitlines()[-1])
    assert (record["level"], record["logger"]) == ("ERROR", "argusd.daemon")
    assert "192.0.2.1:50051" in record["message"]
    text = run_to_end("-log=text", "-log_dir=", "-address=192.0.2.1:50051").stderr
    assert text.splitlines()[-1].startswith("ERROR: Cannot listen on 192.0.2.1:50051")


def test_plaintext_on_all_interfaces_is_one_warning() -> None:
    with Daemon("-log=text", "-address=[::]:0") as daemon:
        pass
    assert sum("all interfaces" in line for line in daemon.lines) == 1


def test_a_name_with_a_version_is_that_program() -> None:
    for name, service in (("/x/janusd-1.0.0", "janus"), ("argusd-1.0.0", "argus"), ("janusdx", "argus")):
        assert f'-services (string, default "{service}")' in run_to_end("-help", name=name).stdout


@needs_root
def test_a_pid_namespace_of_its_own_is_one_warning() -> None:
    command = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child", *COMMAND)
    with Daemon("-log=text", command=command) as daemon:
        assert daemon.state() == []
        assert sum("not the node's PID namespace" in line for line in daemon.lines) == 1
        daemon.kill()
