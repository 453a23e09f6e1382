"""The daemon looks into containers without openat2 too, and says so at its start."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.daemon import COMMAND, Daemon, run_to_end, until
from tests.kernel.container import Container

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: processes are given a root of their own")

OPENAT2: Final = "openat2(RESOLVE_IN_ROOT)"
SETNS: Final = "enters the container with setns"


def without(*answers: str, command: Sequence[str] = COMMAND) -> list[str]:
    """Return a command that runs the daemon without some system calls: ``openat2=ENOSYS``."""
    return [sys.executable, "-m", "tests.restricted", *answers, "--", *command]


@pytest.fixture(params=[False, True], ids=["chroot", "mount_namespace"])
def box(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Container]:
    """A process whose ``/data`` holds a directory, and in which ``/link`` leads to ``/etc`` of the host if anywhere."""
    (tmp_path / "root/data/sub").mkdir(parents=True)
    (tmp_path / "root/etc").mkdir()
    (tmp_path / "root/link").symlink_to("/etc")
    container = Container(tmp_path / "root", own_mounts=request.param)
    yield container
    container.close()


def watch(daemon: Daemon, box: Container, root: Path) -> None:
    """Watch, do something in every place, and expect to be told of it."""
    daemon.create_watch(box.pid, "/data", "/link", recursive=True, event=["create"])
    (root / "data/sub/new").mkdir()
    daemon.wait_for_text("CREATE directory '/data/sub/new'")
    (root / "data/sub/new/file").touch()
    daemon.wait_for_text("CREATE file '/data/sub/new/file'")
    (root / "etc/file").touch()
    daemon.wait_for_text("CREATE file '/link/file'")


def pinned(daemon: Daemon, box: Container, root: Path) -> list[str]:
    """What of the daemon is in the container: threads by their root, folder and namespace, and descriptors."""
    process, own = Path(f"/proc/{daemon.pid}"), Path("/proc/self/ns/mnt").readlink()
    space = Path(f"/proc/{box.pid}/ns/mnt").readlink()
    inside = {space} - {own}
    found = []
    for task in (process / "task").iterdir():
        places = [(task / name).readlink() for name in ("root", "cwd", "ns/mnt")]
        found += [f"{task.name}: {at}" for at in places if at in inside or at.is_relative_to(root)]
    for descriptor in (process / "fd").iterdir():
        at = descriptor.readlink()
        found += [f"{descriptor.name}: {at}"] if at in inside or at.is_relative_to(root) else []
    return found


@pytest.mark.parametrize("enter", ["openat2", "setns"])
def test_a_container_is_watched_and_nothing_of_it_stays_open(box: Container, tmp_path: Path, enter: str) -> None:
    with Daemon("-log=text", f"-enter={enter}") as daemon:
        daemon.wait_for_text(OPENAT2 if enter == "openat2" else SETNS)
        watch(daemon, box, tmp_path / "root")
        until(lambda: not pinned(daemon, box, tmp_path / "root"), "nothing is open in the container")
        box.end()
        box.unmount()
        daemon.wait_for_text(f"Process {box.pid} has ended")
        assert daemon.state() == []


@pytest.mark.parametrize("answer", ["ENOSYS", "EPERM"])
def test_a_daemon_without_openat2_falls_back(box: Container, tmp_path: Path, answer: str) -> None:
    with Daemon("-log=text", command=without(f"openat2={answer}")) as daemon:
        daemon.wait_for_text(f"{SETNS} (openat2 is missing)")
        watch(daemon, box, tmp_path / "root")
        until(lambda: not pinned(daemon, box, tmp_path / "root"), "nothing is open in the container")


def test_a_daemon_that_must_use_openat2_does_not_start_without() -> None:
    result = run_to_end("-log_dir=", "-enter=openat2", command=without("openat2=ENOSYS"))
    assert result.returncode == 1
    assert '"message":"-enter=openat2: openat2(2) is missing' in result.stderr


def test_a_daemon_that_may_not_unshare_watches_with_openat2(box: Container, tmp_path: Path) -> None:
    """docker's seccomp profile forbids unshare(2) of any kind without CAP_SYS_ADMIN."""
    with Daemon("-log=text", command=without("unshare=EPERM", "setns=EPERM")) as daemon:
        daemon.wait_for_text(OPENAT2)
        watch(daemon, box, tmp_path / "root")
        until(lambda: not pinned(daemon, box, tmp_path / "root"), "nothing is open in the container")
