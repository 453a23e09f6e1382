"""What clients may send by mistake or on purpose: a clear status, and a daemon that goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from argusd.proto import argus_pb2
from tests.daemon import WAIT_S, Daemon

INVALID = grpc.StatusCode.INVALID_ARGUMENT
CREATE = "/argus.Argusd/CreateWatch"


@pytest.fixture
def pid(pod: Callable[[], int]) -> int:
    return pod()


@pytest.fixture(autouse=True)
def unharmed(daemon: Daemon, tmp_path: Path, pod: Callable[[], int]) -> Iterator[None]:
    """A watch of another pod stands during each of these tests, and the daemon still does its work behind it."""
    other = pod()
    daemon.create_watch(other, str(tmp_path), podName="other")
    yield
    assert ("node1", "other", [other]) in daemon.state()
    daemon.stub.DestroyWatch(argus_pb2.ArgusdConfig(nodeName="node1", podName="other"), timeout=WAIT_S)
    assert daemon.state() == []
    assert not any("Traceback" in line for line in daemon.lines)


def config(**fields: Any) -> argus_pb2.ArgusdConfig:
    subject = argus_pb2.ArgusWatcherSubject(path=["/"], event=["create"])
    return argus_pb2.ArgusdConfig(
        **{"name": "w1", "nodeName": "node1", "podName": "pod1", "subject": [subject], **fields}
    )


def refused(daemon: Daemon, request: argus_pb2.ArgusdConfig, *, timeout: float = WAIT_S) -> tuple[grpc.StatusCode, str]:
    """Send a request that must fail; returns the status."""
    with pytest.raises(grpc.RpcError) as failure:
        daemon.stub.CreateWatch(request, timeout=timeout)
    return failure.value.code(), failure.value.details() or ""


@pytest.mark.parametrize(
    ("subject", "field"),
    [
        ({"path": ["/"], "event": ["creaet"]}, "subject"),
        ({"path": ["/"], "event": []}, "subject"),
        ({"path": [], "event": ["create"]}, "subject"),
        ({"path": ["/" + "x" * 10_000], "event": ["create"]}, "path"),
        ({"path": ["/x/" * 5_000], "event": ["create"]}, "path"),
        ({"path": ["/a\0b"], "event": ["create"]}, "path"),
        ({"path": ["/"], "event": ["create"], "recursive": True, "maxDepth": -1}, "maxDepth"),
        ({"path": ["/"], "event": ["create"], "tags": {f"k{i}": "v" for i in range(100_000)}}, "tags"),
    ],
    ids=["events", "no-events", "no-paths", "long-name", "long-path", "nul", "depth", "tags"],
)
def test_bad_subject_names_its_field(daemon: Daemon, pid: int, subject: dict[str, Any], field: str) -> None:
    code, details = refused(daemon, config(pid=[pid], subject=[argus_pb2.ArgusWatcherSubject(**subject)]))
    assert code == INVALID
    assert field in details


def test_a_request_that_watches_nothing_lists_the_events(daemon: Daemon, pid: int) -> None:
    code, details = refused(daemon, config(pid=[pid], subject=[]))
    assert code == INVALID
    assert "closewrite" in details


def test_no_container_at_all_is_invalid(daemon: Daemon) -> None:
    code, details = refused(daemon, config())
    assert code == INVALID
    assert "cid" in details


@pytest.mark.parametrize("cid", ["", "x", "docker://", "docker://zzzz", "../../etc", "a" * 11, "A" * 64, "a" * 65])
def test_a_cid_that_is_no_id_is_named(daemon: Daemon, cid: str) -> None:
    code, details = refused(daemon, config(cid=[cid]))
    assert code == INVALID
    assert "cid[0]" in details


@pytest.mark.parametrize("pid", [0, -1, -(2**31)])
def test_a_pid_that_is_no_pid_is_named(daemon: Daemon, pid: int) -> None:
    code, details = refused(daemon, config(pid=[pid]))
    assert code == INVALID
    assert "pid[0]" in details


def test_a_process_that_does_not_exist_is_not_found(daemon: Daemon) -> None:
    code, details = refused(daemon, config(pid=[2**31 - 1]))
    assert code == grpc.StatusCode.NOT_FOUND
    assert str(2**31 - 1) in details


def test_unknown_containers_are_not_found_before_the_deadline(daemon: Daemon) -> None:
    cids = ["containerd://" + digit * 64 for digit in "01"]
    code, details = refused(daemon, config(cid=cids), timeout=1.5)
    assert code == grpc.StatusCode.NOT_FOUND
    assert all(cid in details for cid in cids)


def test_unknown_containers_are_not_found_within_the_controllers_deadline(daemon: Daemon) -> None:
    code, _ = refused(daemon, config(cid=["0" * 64]), timeout=5)
    assert code == grpc.StatusCode.NOT_FOUND


def test_a_client_that_gives_up_leaves_nothing(daemon: Daemon) -> None:
    call = daemon.stub.CreateWatch.future(config(cid=["0" * 64]), timeout=WAIT_S)
    call.cancel()
    with pytest.raises(grpc.FutureCancelledError):
        call.result(WAIT_S)


def test_an_unknown_event_beside_a_known_one_is_a_warning(daemon: Daemon, pid: int, tmp_path: Path) -> None:
    seen = len(daemon.lines)
    daemon.create_watch(pid, str(tmp_path), event=["create", "creaet"])
    assert "WARNING" in daemon.wait_for_text("creaet", after=seen)
    daemon.stub.DestroyWatch(argus_pb2.ArgusdConfig(nodeName="node1", podName="pod1"), timeout=WAIT_S)


def test_a_relative_path_is_taken_from_the_root(daemon: Daemon, pid: int, tmp_path: Path) -> None:
    daemon.create_watch(pid, str(tmp_path).removeprefix("/"), event=["create"])
    (tmp_path / "x").touch()
    daemon.wait_for_text(f"'{tmp_path}/x' (pod1:node1)")
    daemon.stub.DestroyWatch(argus_pb2.ArgusdConfig(nodeName="node1", podName="pod1"), timeout=WAIT_S)


@pytest.mark.parametrize("log_format", ["{", "{nothing}", "{path.__class__}", "{path!r}", "{path:>9999999}", "{0}{}"])
def test_a_malformed_format_is_one_warning_and_loses_nothing(
    daemon: Daemon, pid: int, tmp_path: Path, log_format: str
) -> None:
    seen = len(daemon.lines)
    daemon.create_watch(pid, str(tmp_path), event=["create"], logFormat=log_format)
    (tmp_path / "x").touch()
    daemon.wait_for_text(f"CREATE file '{tmp_path}/x' (pod1:node1)", after=seen)
    warnings = [line for line in daemon.lines[seen:] if "Malformed ArgusWatcher `.spec.logFormat`" in line]
    assert len(warnings) == 1
    assert "WARNING" in warnings[0]
    daemon.stub.DestroyWatch(argus_pb2.ArgusdConfig(nodeName="node1", podName="pod1"), timeout=WAIT_S)


@pytest.mark.parametrize("message", [b"\xff", b"\x0a\xff\xff", b"\x0a\x02\xc3\x28"], ids=["tag", "length", "utf8"])
def test_bytes_that_are_no_message_are_invalid(daemon: Daemon, message: bytes) -> None:
    call: Any = daemon.channel.unary_unary(CREATE, request_serializer=None, response_deserializer=None)
    with pytest.raises(grpc.RpcError) as failure:
        call(message, timeout=WAIT_S)
    assert failure.value.code() == INVALID


def test_a_message_over_the_size_limit_is_refused(daemon: Daemon, pid: int) -> None:
    code, details = refused(daemon, config(pid=[pid], name="x" * (5 * 1024 * 1024)))
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in details


def test_a_name_in_a_request_cannot_forge_a_line(daemon: Daemon, pid: int, tmp_path: Path) -> None:
    pod_name = "p\nI0101 00:00:00.000000 1 x:1] forged\x1b[2J\x85"
    seen = len(daemon.lines)
    daemon.create_watch(pid, str(tmp_path), podName=pod_name)
    daemon.stub.DestroyWatch(argus_pb2.ArgusdConfig(nodeName="node1", podName=pod_name), timeout=WAIT_S)
    daemon.wait_for_text("Stopping", after=seen)
    lines = daemon.lines[seen:]
    assert not any(line.startswith("I0101") or "\x1b" in line or "\x85" in line for line in lines)


def test_an_unknown_method_is_unimplemented(daemon: Daemon) -> None:
    call: Any = daemon.channel.unary_unary("/argus.Argusd/Nothing", request_serializer=None, response_deserializer=None)
    with pytest.raises(grpc.RpcError) as failure:
        call(b"", timeout=WAIT_S)
    assert failure.value.code() == grpc.StatusCode.UNIMPLEMENTED
