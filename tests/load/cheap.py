"""Containers by the hundred: a process in namespaces and a cgroup of its own, on a root that is a mount of its own."""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import select
import shutil
import signal
import struct
import subprocess
from pathlib import Path
from typing import Final, Self

from demo.container import CGROUPS, INIT
from tests.containers import rootfs_template
from tests.load.watched import until

CLONE_NEWNS: Final = 0x00020000
MNT_DETACH: Final = 2
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 1 << 18
IN_DELETE_SELF: Final = 0x400
IN_UNMOUNT: Final = 0x2000
EVENT: Final = struct.Struct("iIII")
WAIT_S: Final = 20.0
FOLDERS: Final = 10
# The shell enters the cgroup before it becomes unshare, so that all that follows is born in it. Inside, the new root
# takes the place of the old one, which goes with all its mounts: the container holds no mount but its own.
BECOME: Final = 'echo $$ >"$0/cgroup.procs" && exec "$@"'
PIVOT: Final = """
    PATH=$PATH:/usr/sbin:/sbin && cd "$0" && pivot_root . old && cd / && mount -t proc proc /proc && umount -l /old &&
    exec "$@"
"""

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def leave_mount_namespace() -> None:
    """Give the calling thread a mount namespace of its own, so that nobody else copies the mounts that it makes."""
    _check(_libc.unshare(CLONE_NEWNS), "unshare")
    _check(_libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None), "making all mounts private")


class Unmounts:
    """Tells when a file system is really gone: not when it is out of sight, but when nobody has anything of it open."""

    def __init__(self) -> None:
        self.fd = _check(_libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK), "inotify_init1")
        self._gone: set[int] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def add(self, root: Path) -> int:
        """Look after the file system with this root; a watch does not keep it."""
        return _check(_libc.inotify_add_watch(self.fd, bytes(root), IN_DELETE_SELF), f"inotify_add_watch {root}")

    def wait(self, watch: int) -> None:
        """Wait until it is gone; TimeoutError when somebody keeps it."""
        poller = select.poll()
        poller.register(self.fd, select.POLLIN)
        while watch not in self._gone:
            if not poller.poll(WAIT_S * 1000):
                raise TimeoutError(f"somebody still has the file system open after {WAIT_S:.0f} s")
            data = os.read(self.fd, 1 << 16)
            self._gone |= {wd for wd, mask, _, _ in EVENT.iter_unpack(data) if mask & IN_UNMOUNT}


class CheapContainer:
    """One container. It is made in the mount namespace of the calling thread, which sees its root as ``root``."""

    def __init__(self, folder: Path, cgroups: Path) -> None:
        self.id: Final = secrets.token_hex(32)
        self.root: Final = folder / self.id
        self._cgroup: Final = cgroups / self.id
        self.pid = 0
        self.device = 0
        self._pidfd = -1
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        """Mount the root, fill it, run its init, wait until that is what it will be."""
        self.root.mkdir()
        _check(_libc.mount(b"tmpfs", bytes(self.root), b"tmpfs", 0, b"mode=755"), f"mount {self.root}")
        self.device = self.root.stat().st_dev
        shutil.copytree(rootfs_template(), self.root, symlinks=True, dirs_exist_ok=True)
        (self.root / "old").mkdir()
        for number in range(FOLDERS):
            (self.root / "data" / str(number) / "below").mkdir(parents=True)
        self._cgroup.mkdir()
        outside = ("unshare", "--pid", "--fork", "--kill-child")  # keeps its own root, as a runtime does
        unshare = (*outside, "unshare", "--mount", "sh", "-c", PIVOT, str(self.root), *INIT)
        command = ["sh", "-c", BECOME, str(self._cgroup), *unshare]
        # unshare complains when its child is killed.
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.pid = self._init(self._process)
        self._pidfd = os.pidfd_open(self.pid)

    def kill(self) -> None:
        """SIGKILL the init; returns when it has ended."""
        signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        poller = select.poll()
        poller.register(self._pidfd, select.POLLIN)
        if not poller.poll(WAIT_S * 1000):
            raise TimeoutError(f"process {self.pid} still runs {WAIT_S:.0f} s after SIGKILL")

    def unmount(self) -> None:
        """umount(2), which is EBUSY for a mount that is in use."""
        _check(_libc.umount2(bytes(self.root), 0), f"umount {self.root}")

    def close(self) -> None:
        """End what still runs and remove what is left. May be called twice."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        if self._process is not None:
            self._process.kill()  # unshare takes its child along; the root is out of sight when it is still mounted
            self._process.wait()
            self._process = None
            _libc.umount2(bytes(self.root), MNT_DETACH)
        if self._cgroup.exists():
            until(self._removed, "a cgroup without processes", timeout_s=WAIT_S)
        if self.root.exists():
            self.root.rmdir()

    def _removed(self) -> bool:
        with contextlib.suppress(OSError):
            self._cgroup.rmdir()
        return not self._cgroup.exists()

    def _init(self, process: subprocess.Popen[bytes]) -> int:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        found: list[int] = []

        def runs() -> bool:
            pids = children.read_text().split()
            found[:] = [int(pid) for pid in pids if Path(f"/proc/{pid}/comm").read_text() == f"{Path(INIT[0]).name}\n"]
            return bool(found)

        until(runs, f"the init of {self.id}", timeout_s=WAIT_S)
        return found[0]


def writable_cgroups() -> Path:
    """The root of a hierarchy in which a cgroup takes processes without more ado."""
    hierarchies = (CGROUPS, CGROUPS / "unified", CGROUPS / "systemd", CGROUPS / "pids")
    return next(path for path in hierarchies if (path / "cgroup.procs").exists() and os.access(path, os.W_OK))
