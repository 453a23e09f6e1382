"""What a container's processes, libraries and cgroups pretend to be."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest

from demo.container import CGROUPS, ProcessContainer
from tests.containers import RuncContainer, rootfs_template
from tests.daemon import Daemon
from tests.e2e.hostile.hunt import (
    COMMAND_NAME,
    Canaries,
    HostileContainer,
    Hunt,
    Inotify,
    create,
    destroy,
    event_of,
    inode,
    inodes_below,
    report,
    watched,
)
from tests.waiting import until

LIBRARIES: Final = ("lib", "lib64", "lib/x86_64-linux-gnu", "usr/lib", "usr/lib64", "usr/lib/x86_64-linux-gnu")


def test_libraries_in_the_container_are_not_loaded(daemon: Daemon, hunt: Hunt, box: HostileContainer, pod: str) -> None:
    planted = []
    for folder in LIBRARIES:
        (box.rootfs / folder).mkdir(parents=True, exist_ok=True)
        for name in ("libgcc_s.so.1", "libc.so.6", "libpthread.so.0", "libnss_files.so.2"):
            (box.rootfs / folder / name).write_bytes(b"\x7fELF not a library")
            planted.append(box.rootfs / folder / name)
    for name in ("ld.so.cache", "ld.so.preload", "nsswitch.conf", "localtime"):
        (box.rootfs / "etc" / name).write_text("/lib/libgcc_s.so.1")
        planted.append(box.rootfs / "etc" / name)
    listener = Inotify(planted, mask=0x21)  # IN_OPEN, IN_ACCESS
    for number in range(20):
        create(daemon, box.uri, "/data", "/lib/x", pod=f"{pod}-{number}", recursive=True)
        new = box.rootfs / "data" / f"d{number}"
        new.mkdir()
        until(lambda new=new: inode(new) in watched(daemon.pid), "watched")  # type: ignore[misc]  # of any type
    for number in range(20):
        destroy(daemon, f"{pod}-{number}")
    assert listener.read() == b""
    listener.close()
    assert str(box.rootfs) not in Path(f"/proc/{daemon.pid}/maps").read_text()
    assert hunt.findings() == []


def test_init_becomes_another_program(daemon: Daemon, hunt: Hunt, box: HostileContainer, pod: str) -> None:
    handle = create(daemon, box.uri, "/data", pod=pod, recursive=True)
    os.kill(box.pid, signal.SIGHUP)
    until(lambda: Path(f"/proc/{box.pid}/comm").read_text() == "busybox\n", "another program")
    assert (("node1", pod, list(handle.pid))) in daemon.state()
    (box.rootfs / "data" / "new").mkdir()
    report(box, daemon, pod, "/data/new", "x")
    assert list(create(daemon, box.uri, "/data", pod=pod, recursive=True).pid) == [box.pid]
    assert hunt.findings() == []


@pytest.mark.parametrize("when", ["before", "afterwards"])
def test_init_ends_its_main_thread(daemon: Daemon, hunt: Hunt, box: HostileContainer, pod: str, when: str) -> None:
    data = box.rootfs / "data"
    if when == "before":
        thread = end_main_thread(box)
    assert list(create(daemon, box.uri, "/data", pod=pod, recursive=True).pid) == [box.pid]
    if when == "afterwards":
        thread = end_main_thread(box)
        assert list(create(daemon, box.uri, "/data", "/etc", pod=pod, recursive=True).pid) == [box.pid]
    (data / "new").mkdir()
    until(lambda: inode(data / "new") in watched(daemon.pid), "the new directory is watched")
    (data / "new" / "x").touch()
    until(lambda: event_of(daemon, pod, "x"), "an event in the new directory")
    space = ("nsenter", f"--target={thread}", "--mount", "--root", "--wd")
    subprocess.run([*space, "/bin/busybox", "mount", "-t", "tmpfs", "none", "/data/new"], check=True)
    until(lambda: inode(Path(f"/proc/{thread}/root/data/new")) in watched(daemon.pid), "the mount is watched")
    assert ("node1", pod, [box.pid]) in daemon.state()
    box.kill()
    until(lambda: not watched(daemon.pid), "no watches after its end")
    assert not [handle for handle in daemon.state() if handle[1] == pod]
    assert hunt.findings() == []


def end_main_thread(box: HostileContainer) -> int:
    """Let the main thread of the init end, and return another one of its threads."""
    os.kill(box.pid, signal.SIGUSR2)
    until(lambda: not Path(f"/proc/{box.pid}/root/.").exists(), "a main thread that has ended")
    return next(thread for path in Path(f"/proc/{box.pid}/task").iterdir() if (thread := int(path.name)) != box.pid)


def test_a_process_may_call_itself_anything(daemon: Daemon, box: HostileContainer, pod: str) -> None:
    assert Path(f"/proc/{box.pid}/comm").read_text() == COMMAND_NAME
    assert list(create(daemon, box.uri, "/data", pod=pod).pid) == [box.pid]


def test_a_cgroup_is_named_after_another_container(daemon: Daemon, hunt: Hunt, box: HostileContainer, pod: str) -> None:
    with RuncContainer() as victim:
        for hierarchy in [CGROUPS, *CGROUPS.iterdir()]:
            own = Path(f"{hierarchy}{box.cgroup}")
            if (own / "cgroup.procs").exists():
                for name in (victim.id, f"docker-{victim.id}.scope", f"x:y:{victim.id}"):
                    (own / name).mkdir()
                with suppress(OSError):  # a cpuset that is not set up takes nobody in
                    (own / victim.id / "cgroup.procs").write_text(str(box.pid))
        try:
            assert list(create(daemon, victim.uri, "/data", pod=pod).pid) == [victim.pid]
            assert list(create(daemon, box.uri, "/data", pod=f"{pod}-hostile").pid) == [box.pid]
        finally:
            box.kill()
            for hierarchy in [CGROUPS, *CGROUPS.iterdir()]:
                for name in (victim.id, f"docker-{victim.id}.scope", f"x:y:{victim.id}"):
                    with suppress(FileNotFoundError, NotADirectoryError):
                        Path(f"{hierarchy}{box.cgroup}", name).rmdir()
        assert hunt.findings() == []


class Unfinished(ProcessContainer):
    """A container that a runtime is just making: it has its cgroup and its namespaces, but not its root."""

    def _start(self, folder: Path) -> int:
        self._cgroup = self._writable_hierarchy() / self.cgroup.lstrip("/")
        self._cgroup.mkdir(parents=True)
        script = 'echo $$ >"$0/cgroup.procs" && exec unshare --mount --pid --fork --kill-child sh -c "$1"'
        finish = f'echo ready; read go; exec chroot "{folder / "rootfs"}" /bin/sleep 3600'
        self._unshare = subprocess.Popen(
            ["sh", "-c", script, self._cgroup, finish], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._unshare.stdout
        assert self._unshare.stdout.readline() == b"ready\n"
        (child,) = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children").read_text().split()
        return int(child)

    def finish(self) -> None:
        """Enter the root."""
        assert self._unshare.stdin
        self._unshare.stdin.write(b"go\n")
        self._unshare.stdin.flush()

    def _remove(self) -> None:
        super()._remove()
        self._unshare.communicate()


def test_nothing_is_looked_for_in_the_root_of_the_runtime(daemon: Daemon, canaries: Canaries) -> None:
    paths = ("/etc", str(canaries.silent), str(canaries.singing))
    with (
        Unfinished(rootfs_template()) as box,
        Hunt(daemon, canaries, [box.rootfs.parent]) as hunt,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        call = pool.submit(create, daemon, box.id, *paths, pod="unfinished", recursive=True)
        looks = hunt.looks
        until(lambda: hunt.looks > looks + 100, "looks while there is no root")
        assert not call.done(), call.exception()
        box.finish()
        assert list(call.result().pid) == [box.pid]
        (box.rootfs / "etc" / "found").touch()
        until(lambda: event_of(daemon, "unfinished", "found"), "an event in its own root")
        assert watched(daemon.pid) <= inodes_below(box.root)


def test_a_container_of_runc_is_found_while_it_starts(daemon: Daemon, canaries: Canaries) -> None:
    with Hunt(daemon, canaries) as hunt, concurrent.futures.ThreadPoolExecutor(1) as pool:
        for number in range(3):
            box = RuncContainer()
            # The daemon asks for it again and again from before it is started.
            call = pool.submit(create, daemon, box.uri, "/etc", str(canaries.singing), pod=f"start-{number}")
            with box:
                assert list(call.result().pid) == [box.pid]
                assert watched(daemon.pid) <= inodes_below(box.root)
        assert hunt.findings() == []
