"""With fewer rights than root's the daemon says what it lacks, and never claims to watch what it cannot."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import grpc
import pytest

from tests.daemon import COMMAND, Daemon, until
from tests.grpc.test_entering import without
from tests.kernel.container import Container

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: rights are taken away"),
    pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv (util-linux)"),
]

NOBODY: Final = 65534
DOCKER: Final = (
    "chown", "dac_override", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap", "net_bind_service", "net_raw",
    "sys_chroot", "mknod", "audit_write", "setfcap",
)  # fmt: skip
"""The capabilities of a docker container."""


def with_only(capabilities: Sequence[str], *, user: int = 0) -> list[str]:
    """Return a command that runs the daemon with these capabilities and no others."""
    words = ",".join(["-all", *(f"+{name}" for name in capabilities)])
    identity = [f"--reuid={user}", f"--regid={user}", "--clear-groups"]
    ambient = [f"--ambient-caps={words}"] if user else []
    inherited = words if user else "-all"
    return ["setpriv", *identity, f"--bounding-set={words}", f"--inh-caps={inherited}", *ambient, *COMMAND]


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Container]:
    """A process of root in a mount namespace and a root of its own, in which ``/closed`` is another user's alone."""
    (tmp_path / "root/data/sub").mkdir(parents=True)
    (tmp_path / "root/closed/sub").mkdir(parents=True)
    for name in ("closed/sub", "closed"):
        os.chown(tmp_path / "root" / name, 1234, 1234)
        (tmp_path / "root" / name).chmod(0o700)
    container = Container(tmp_path / "root", own_mounts=True)
    yield container
    container.close()


def refusal(daemon: Daemon, pid: int, *paths: str) -> str:
    """The details of a PERMISSION_DENIED."""
    with pytest.raises(grpc.RpcError) as failure:
        daemon.create_watch(pid, *paths, recursive=True)
    assert failure.value.code() == grpc.StatusCode.PERMISSION_DENIED
    return str(failure.value.details())


def warnings(daemon: Daemon) -> list[str]:
    """The warnings at the start."""
    return [line for line in daemon.lines if line.startswith("W")]


def watches(daemon: Daemon) -> int:
    """How many inotify watches the daemon holds, as the kernel lists them; one of them is its own mark."""
    found = 0
    for descriptor in Path(f"/proc/{daemon.pid}/fdinfo").iterdir():
        found += descriptor.read_text().count("inotify wd:")
    return found


def assert_watches(daemon: Daemon, box: Container, root: Path) -> None:
    """Everything in the container is watched, the closed folder included."""
    daemon.create_watch(box.pid, "/", recursive=True, event=["create"])
    (root / "closed/sub/new").mkdir()
    daemon.wait_for_text("CREATE directory '/closed/sub/new'")
    (root / "closed/sub/new/file").touch()
    daemon.wait_for_text("CREATE file '/closed/sub/new/file'")


@pytest.mark.parametrize("enter", ["openat2", "setns"])
def test_the_rights_of_the_manifests_are_enough(box: Container, tmp_path: Path, enter: str) -> None:
    command = with_only([*DOCKER, "sys_ptrace", "sys_admin"])
    with Daemon("-log=text", f"-enter={enter}", command=command) as daemon:
        assert_watches(daemon, box, tmp_path / "root")
        assert warnings(daemon) == []


@pytest.mark.parametrize("user", [0, NOBODY])
def test_two_capabilities_are_enough_for_openat2(box: Container, tmp_path: Path, user: int) -> None:
    """With what docker's seccomp profile forbids without CAP_SYS_ADMIN."""
    command = without("unshare=EPERM", "setns=EPERM", command=with_only(["sys_ptrace", "dac_read_search"], user=user))
    with Daemon("-log=text", command=command) as daemon:
        assert_watches(daemon, box, tmp_path / "root")
        assert warnings(daemon) == []


def test_without_sys_ptrace_it_says_so_and_refuses(box: Container) -> None:
    """Also root cannot look into a process that has more capabilities."""
    with Daemon("-log=text", command=with_only(["dac_read_search"])) as daemon:
        assert len(warnings(daemon)) == 1
        assert warnings(daemon)[0].partition("] ")[2] == (
            "Running without CAP_SYS_PTRACE. CAP_SYS_PTRACE: processes of other users, and those with more "
            "capabilities than the daemon's, are not watched"
        )
        details = refusal(daemon, box.pid, "/data", "/closed")
        assert details == f"cannot see the root of process {box.pid}: the daemon lacks CAP_SYS_PTRACE"
        assert daemon.state() == []
        assert watches(daemon) == 1


@pytest.mark.parametrize("path", ["/closed", "/closed/sub", "/"])
def test_without_dac_read_search_it_says_so_and_refuses(box: Container, path: str) -> None:
    with Daemon("-log=text", command=with_only(["sys_ptrace"])) as daemon:
        assert len(warnings(daemon)) == 1
        assert "Running without CAP_DAC_READ_SEARCH. " in warnings(daemon)[0]
        details = refusal(daemon, box.pid, "/data", path)
        closed = "/closed" if path == "/" else path
        assert details == f"'{closed}' in process {box.pid} is closed to the daemon, which lacks CAP_DAC_READ_SEARCH"
        assert daemon.state() == []
        until(lambda: watches(daemon) == 1, "the watches are gone")
        daemon.create_watch(box.pid, "/data", recursive=True)
        assert len(daemon.state()) == 1


@pytest.mark.parametrize("lacking", ["sys_admin", "sys_chroot"])
def test_setns_without_its_capabilities_is_refused(box: Container, lacking: str) -> None:
    rights = {*DOCKER, "sys_ptrace", "sys_admin"} - {lacking}
    with Daemon("-log=text", "-enter=setns", command=with_only(sorted(rights))) as daemon:
        name = f"CAP_{lacking.upper()}"
        assert len(warnings(daemon)) == 1
        assert f"Running without {name}. " in warnings(daemon)[0]
        details = refusal(daemon, box.pid, "/data")
        assert details == f"cannot enter process {box.pid} with setns: the daemon lacks {name}"
        assert daemon.state() == []
        assert watches(daemon) == 1


def test_setns_that_seccomp_forbids_is_refused(box: Container) -> None:
    with Daemon("-log=text", command=without("openat2=ENOSYS", "setns=EPERM")) as daemon:
        assert warnings(daemon) == []
        details = refusal(daemon, box.pid, "/data")
        assert details.startswith(f"cannot enter process {box.pid} with setns: Operation not permitted, although")
        assert daemon.state() == []


def test_a_user_other_than_root_is_told_so_and_watches_its_own(box: Container, tmp_path: Path) -> None:
    """It has one right, without which it could not read this project where that is closed to others."""
    as_user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "sleep", "infinity"]
    with (
        Daemon("-log=text", command=with_only(["dac_read_search"], user=NOBODY)) as daemon,
        subprocess.Popen(as_user) as own,
    ):
        assert len(warnings(daemon)) == 1
        assert f"Running as user {NOBODY}, not as root, and without CAP_SYS_PTRACE. " in warnings(daemon)[0]
        assert "CAP_SYS_PTRACE" in refusal(daemon, box.pid, "/data")
        try:
            until(lambda: Path(f"/proc/{own.pid}/comm").read_text() == "sleep\n", "sleep runs")
            daemon.create_watch(own.pid, str(tmp_path), event=["create"])
            (tmp_path / "new").touch()
            daemon.wait_for_text(f"CREATE file '{tmp_path}/new'")
        finally:
            own.kill()
