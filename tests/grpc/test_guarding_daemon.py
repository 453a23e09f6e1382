"""The daemon of guards as a process: its name, its services, its rights, its ends, and both services in one."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from argusd.proto import argus_pb2, janus_pb2
from tests.daemon import WAIT_S, Daemon, until
from tests.grpc.test_guards import use
from tests.grpc.test_privileges import DOCKER, warnings, with_only
from tests.grpc.test_start import health, services

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: fanotify_init takes CAP_SYS_ADMIN")
needs_setpriv = pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv (util-linux)")

Pod = Callable[[], int]
JANUSD = {"STATICX_PROG_PATH": "/usr/local/bin/janusd"}
"""How the one-file binary says what it was called."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "guarded" / "f"
    path.parent.mkdir()
    path.write_text("hello")
    return path


def code_of(call: Callable[[], Any]) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as failure:
        call()
    return failure.value.code()


def test_under_the_name_janusd_it_serves_guards_and_nothing_else(pod: Pod, file: Path) -> None:
    with Daemon("-reflection", environment=JANUSD) as daemon:
        daemon.create_guard(pod(), str(file))
        assert use(file) == "open: EPERM"
        assert code_of(daemon.state) == grpc.StatusCode.UNIMPLEMENTED
        assert health(daemon.channel, "janus.Janusd") == health_pb2.HealthCheckResponse.SERVING
        assert code_of(lambda: health(daemon.channel, "argus.Argusd")) == grpc.StatusCode.NOT_FOUND
        assert "janus.Janusd" in services(daemon)


def test_under_the_name_argusd_it_serves_no_guards() -> None:
    with Daemon() as daemon:
        assert code_of(daemon.guard_state) == grpc.StatusCode.UNIMPLEMENTED


def test_both_services_in_one_process_work_on_the_same_files(pod: Pod, file: Path) -> None:
    with Daemon("-log=json", "-services=argus,janus", "-reflection") as daemon:
        assert {"argus.Argusd", "janus.Janusd", "grpc.health.v1.Health"} <= services(daemon)
        assert health(daemon.channel, "argus.Argusd") == health_pb2.HealthCheckResponse.SERVING
        assert health(daemon.channel, "janus.Janusd") == health_pb2.HealthCheckResponse.SERVING
        stream = daemon.stub.RecordMetrics(argus_pb2.Empty(), timeout=WAIT_S)
        stream.initial_metadata()
        pid, other = pod(), file.with_name("other")
        other.write_text("other")
        daemon.create_watch(pid, str(file.parent), event=["open", "create"], name="same")
        daemon.create_guard(pid, str(file), allow=[str(other)], name="same")
        assert use(file) == "open: EPERM"
        assert use(other) == "other"
        daemon.wait_for_text(f"OPEN file '{other}'")
        daemon.wait_for_text(f"<ALLOW> OPEN_PERM file '{other}'")
        told = [(record["logger"], record.get("response"), record["event"]) for record in daemon.events]
        assert sorted(told, key=str) == [
            ("argusd.events", None, "OPEN"),  # a denied open is none
            ("janusd.events", "ALLOW", "OPEN_PERM"),
            ("janusd.events", "DENY", "OPEN_PERM"),
        ]
        assert daemon.state() == daemon.guard_state() == [("node1", "pod1", [pid])]

        daemon.stub.DestroyWatch(argus_pb2.ArgusdConfig(nodeName="node1", podName="pod1"), timeout=WAIT_S)
        assert (daemon.state(), daemon.guard_state()) == ([], [("node1", "pod1", [pid])])
        assert use(file) == "open: EPERM"
        daemon.create_watch(pid, str(file.parent), event=["create"], name="same")
        daemon.guards.DestroyGuard(janus_pb2.JanusdConfig(nodeName="node1", podName="pod1"), timeout=WAIT_S)
        assert (daemon.state(), daemon.guard_state()) == ([("node1", "pod1", [pid])], [])
        assert use(file) == "hello"
        file.with_name("new").touch()
        daemon.wait_for_text(f"CREATE file '{file.with_name('new')}'")
        assert daemon.stop() == 0
        counted = [(message.argusWatcher, message.event) for message in stream]
        assert counted == [("same", "open"), ("same", "create")]  # guards are not counted


@needs_setpriv
def test_two_capabilities_and_sys_admin_are_enough(pod: Pod, file: Path) -> None:
    command = with_only(["sys_ptrace", "dac_read_search", "sys_admin", "audit_write"])
    with Daemon("-log=text", "-services=janus", command=command) as daemon:
        assert warnings(daemon) == []
        daemon.create_guard(pod(), str(file))
        assert use(file) == "open: EPERM"


@needs_setpriv
def test_without_sys_admin_it_says_so_and_refuses(pod: Pod, file: Path) -> None:
    command = with_only([*DOCKER, "sys_ptrace", "dac_read_search"])
    with Daemon("-log=text", "-services=argus,janus", "-enter=openat2", command=command) as daemon:
        assert [line.partition("] ")[2] for line in warnings(daemon)] == [
            "Running without CAP_SYS_ADMIN. CAP_SYS_ADMIN: nothing is guarded, because fanotify_init needs it"
        ]
        pid = pod()
        with pytest.raises(grpc.RpcError) as failure:
            daemon.create_guard(pid, str(file))
        assert failure.value.code() == grpc.StatusCode.PERMISSION_DENIED
        assert failure.value.details() == (
            f"cannot guard process {pid}: fanotify_init(2) is not permitted: the daemon lacks CAP_SYS_ADMIN"
        )
        assert use(file) == "hello"
        assert daemon.guard_state() == []
        daemon.create_watch(pid, str(file.parent), event=["create"])  # which need no more than before
        assert len(daemon.state()) == 1


@needs_setpriv
def test_audit_without_its_capability_is_refused(pod: Pod, file: Path) -> None:
    command = with_only(["sys_ptrace", "dac_read_search", "sys_admin"])
    with Daemon("-log=text", "-services=janus", command=command) as daemon:
        assert "Running without CAP_AUDIT_WRITE. " in warnings(daemon)[0]
        pid = pod()
        with pytest.raises(grpc.RpcError) as failure:
            daemon.create_guard(pid, str(file), audit=True)
        assert failure.value.code() == grpc.StatusCode.PERMISSION_DENIED
        assert failure.value.details() == (
            f"cannot guard process {pid} with `audit`: fanotify_init(2) is not permitted: "
            "the daemon lacks CAP_AUDIT_WRITE"
        )
        assert use(file) == "hello"
        daemon.create_guard(pid, str(file))
        assert use(file) == "open: EPERM"


def test_audit_with_its_capability_guards_or_says_what_is_missing(pod: Pod, file: Path) -> None:
    with Daemon("-log=text", "-services=janus") as daemon:
        refusal: Any = None
        try:
            daemon.create_guard(pod(), str(file), audit=True)
        except grpc.RpcError as error:
            refusal = error
        if refusal is None:
            assert use(file) == "open: EPERM"
            daemon.wait_for_text(f"<DENY> OPEN_PERM file '{file}'")
        else:  # a kernel without audit
            assert refusal.code() == grpc.StatusCode.FAILED_PRECONDITION
            assert "CONFIG_AUDITSYSCALL" in refusal.details()
            assert use(file) == "hello"


def test_an_orderly_end_opens_everything_and_leaves_nothing_behind(pod: Pod, file: Path, tmp_path: Path) -> None:
    flags = ("-log=text", "-services=janus", f"-log_dir={tmp_path}")
    with Daemon(*flags) as daemon:
        daemon.create_guard(pod(), str(file))
        assert (tmp_path / "janusd.guarding").exists()
        assert daemon.stop() == 0
        daemon.wait_for_text("No longer guarded: (pod1:node1)")
    assert use(file) == "hello"
    assert not (tmp_path / "janusd.guarding").exists()
    with Daemon(*flags) as daemon:
        assert warnings(daemon) == []


def test_a_sudden_end_opens_everything_and_is_told_at_the_next_start(pod: Pod, file: Path, tmp_path: Path) -> None:
    flags = ("-log=text", "-services=janus", f"-log_dir={tmp_path}")
    with Daemon(*flags) as daemon:
        pid = pod()
        daemon.create_guard(pid, str(file))
        killed = daemon.pid
        daemon.process.send_signal(signal.SIGKILL)
        assert daemon.process.wait(WAIT_S) == -signal.SIGKILL
    until(lambda: use(file) == "hello", "the file is free")
    with Daemon(*flags) as daemon:
        line = daemon.wait_for_text("did not end in order")
        assert line.startswith("W")
        assert f"The daemon with pid {killed} did not end in order: since 2" in line
        assert line.endswith("what it guarded is open to everybody, until it is guarded again: (pod1:node1)")
        daemon.create_guard(pid, str(file))
        assert use(file) == "open: EPERM"


def test_a_destroyed_guard_is_nothing_to_tell_of(pod: Pod, file: Path, tmp_path: Path) -> None:
    flags = ("-log=text", "-services=janus", f"-log_dir={tmp_path}")
    with Daemon(*flags) as daemon:
        daemon.create_guard(pod(), str(file))
        daemon.guards.DestroyGuard(janus_pb2.JanusdConfig(nodeName="node1", podName="pod1"), timeout=WAIT_S)
        daemon.process.send_signal(signal.SIGKILL)
        assert daemon.process.wait(WAIT_S) == -signal.SIGKILL
    with Daemon(*flags) as daemon:
        assert daemon.guard_state() == []
    assert warnings(daemon) == []


def test_without_a_log_folder_there_is_no_marker(pod: Pod, file: Path, tmp_path: Path) -> None:
    with Daemon("-log=text", "-services=janus", environment={"TMPDIR": str(tmp_path)}) as daemon:
        daemon.create_guard(pod(), str(file))
        assert {path.name for path in tmp_path.iterdir()} == {"guarded"}
        assert warnings(daemon) == []


def test_processes_that_wait_for_an_answer_go_on_when_it_ends(pod: Pod, file: Path) -> None:
    """A stopped daemon answers nobody; its death is the answer."""
    with Daemon("-log=text", "-services=janus") as daemon:
        daemon.create_guard(pod(), allow=[str(file)])
        daemon.process.send_signal(signal.SIGSTOP)
        child = os.fork()
        if child == 0:
            try:
                os.open(file, os.O_RDONLY)
            except OSError as error:
                os._exit(error.errno or errno.EIO)
            os._exit(0)
        until(lambda: "fanotify" in Path(f"/proc/{child}/wchan").read_text(), "the open waits")
        daemon.kill()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
