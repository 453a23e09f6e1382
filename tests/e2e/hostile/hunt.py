"""What it takes to show that a hostile container leads the daemon nowhere: canaries on the host, and their keeper.

Three things would show an escape:

- the daemon's own list of watches in /proc/PID/fdinfo (proc_pid_fdinfo(5)), looked at all the time and compared with
  the inodes of the host: its root, /etc and such, the canaries, the folders above a container's root;
- a canary that stays silent: nobody but an intruder opens or reads it, and an inotify instance of the test would tell;
- a canary that sings: it changes all the time, under names that must never stand in the daemon's log.
"""

from __future__ import annotations

import atexit
import ctypes
import errno
import functools
import itertools
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from argusd.proto import argus_pb2
from demo.container import oci_spec
from tests.containers import RuncContainer
from tests.daemon import Daemon
from tests.waiting import until

WAIT_S: Final = 20.0
COMMAND_NAME: Final = ") Z 1\n(sh\n"
SONG: Final = "canary-song"
ALL_EVENTS: Final = 0xFFF
_FDINFO: Final = re.compile(rb"^inotify wd:[0-9a-f]+ ino:([0-9a-f]+) sdev:([0-9a-f]+) ", re.MULTILINE)
_NEXT_LOOK_S: Final = 0.002

Inode = tuple[int, int]
"""Device and number, as stat(2) gives them."""


def inode(path: Path) -> Inode:
    """What a path stands for."""
    status = path.stat()
    return status.st_dev, status.st_ino


def inodes_below(root: Path) -> set[Inode]:
    """Everything in a container, seen through its init: what is mounted there as well, but for its /proc and /sys."""
    # GNU find goes as deep as there are descriptors and beyond.
    command = [
        "find",
        f"{root}/",
        "(",
        "-fstype",
        "proc",
        "-o",
        "-fstype",
        "sysfs",
        ")",
        "-prune",
        "-o",
        "-printf",
        r"%D %i\n",
    ]
    listing = subprocess.run(command, capture_output=True, check=False).stdout
    return {(int(device), int(number)) for device, number in (line.split() for line in listing.splitlines())}


def watched(pid: int) -> set[Inode]:
    """The inodes that a process watches with inotify, its own memfds left out."""
    found: set[Inode] = set()
    own: set[Inode] = set()
    for name in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(name.readlink())
            if target == "anon_inode:inotify":
                for number, device in _FDINFO.findall(Path(f"/proc/{pid}/fdinfo/{name.name}").read_bytes()):
                    # The kernel's own form of a device number: 20 bits of minor (dev_t in include/linux/kdev_t.h).
                    found.add((os.makedev(int(device, 16) >> 20, int(device, 16) & 0xFFFFF), int(number, 16)))
            elif target.startswith("/memfd:"):
                own.add(inode(name))
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.ENAMETOOLONG}:  # closed meanwhile; a directory far down a tree
                raise
    return found - own


@functools.cache
def attacker() -> Path:
    """The attacker's program, compiled once per test process."""
    folder = Path(tempfile.mkdtemp(prefix="argusd-attacker-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    source = Path(__file__).with_name("attacker.c")
    subprocess.run(["cc", "-O2", "-Wall", "-static", "-pthread", "-o", folder / "attacker", source], check=True)
    return folder / "attacker"


class HostileContainer(RuncContainer):
    """A runc container whose init is the attacker's, with the capabilities that docker gives by default.

    Its init does as the signals tell it, see attacker.c; it changes root to /jail.
    """

    def _start(self, folder: Path) -> int:
        shutil.copy(attacker(), self.rootfs / "attacker")
        (self.rootfs / "jail").mkdir()
        spec = oci_spec(self.cgroup)
        spec["process"]["args"] = ["/attacker", "init", "/jail"]
        for held in spec["process"]["capabilities"].values():
            held += ["CAP_SYS_CHROOT", "CAP_SETPCAP", "CAP_FSETID", "CAP_NET_RAW", "CAP_AUDIT_WRITE"]
        (folder / "config.json").write_text(json.dumps(spec))
        pid_file = folder / "init.pid"
        self._runc("run", "--detach", "--bundle", str(folder), "--pid-file", str(pid_file), self.id)
        pid = int(pid_file.read_text())
        # runc returns a moment before its process has become the attacker, who waits for signals under this name.
        until(lambda: Path(f"/proc/{pid}/comm").read_text() == COMMAND_NAME, "the attacker")
        return pid

    def attack(self, *command: str) -> None:
        """Let the attacker do something to its end."""
        self.exec(["/attacker", *command])

    @contextmanager
    def attacking(self, *command: str) -> Iterator[Attack]:
        """Let the attacker work for as long as the context lasts."""
        pipe = subprocess.PIPE
        with subprocess.Popen([*self._enter_command(), "/attacker", *command], stdin=pipe, stdout=pipe) as process:
            assert process.stdin
            assert process.stdout
            assert process.stdout.readline() == b"ready\n"
            attack = Attack()
            yield attack
            process.stdin.close()
            attack.rounds = int(process.stdout.readline())
            assert process.wait(WAIT_S) == 0

    def privileged(self, script: str) -> None:
        """Run a shell script of the host's busybox in the container's mount namespace, with all capabilities."""
        space = ("nsenter", f"--target={self.pid}", "--all", "--root", "--wd")
        subprocess.run([*space, "/bin/busybox", "sh", "-c", script], check=True, env={"PATH": "/bin"}, timeout=WAIT_S)


@dataclass(slots=True)
class Attack:
    """What came of an attack; known when it is over."""

    rounds: int = 0


class Inotify:
    """An inotify instance of the test's own."""

    def __init__(self, paths: Iterable[Path], mask: int = ALL_EVENTS) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd: Final = self._libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        assert self.fd >= 0
        for path in paths:
            watch = self._libc.inotify_add_watch(self.fd, os.fsencode(path), mask)
            assert watch >= 0, f"{path}: {os.strerror(ctypes.get_errno())}"

    def read(self) -> bytes:
        """Whatever has happened; nothing when nothing has."""
        try:
            return os.read(self.fd, 1 << 16)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        """Close it."""
        os.close(self.fd)


class Canaries:
    """Folders of the host that nobody from a container may come to: one silent, one singing."""

    def __init__(self, folder: Path) -> None:
        """``folder`` must exist; what is made in it is left there."""
        self.silent: Final = folder / "silent"
        self.singing: Final = folder / "singing"
        for canary in (self.silent, self.singing):
            (canary / "sub" / "below").mkdir(parents=True)
            (canary / "key").write_text("secret")
            (canary / "sub" / "key").write_text("secret")
        silent = [self.silent, *self.silent.rglob("*")]
        self._listener = Inotify(silent)
        above = [Path("/", *self.silent.parts[1:count]) for count in range(1, len(self.silent.parts))]
        host = (
            Path(name) for name in ("/", "/etc", "/root", "/home", "/var", "/usr", "/proc", "/dev", "/sys", "/boot")
        )
        known = [*above, *silent, self.singing, *self.singing.rglob("*"), *host, *Path("/etc").iterdir()]
        self.forbidden: Final = {inode(path) for path in known if path.exists()}
        self.verses = 0
        self._stop = threading.Event()
        self._singer = threading.Thread(target=self._sing, name="canary", daemon=True)
        self._singer.start()

    def woken(self) -> bytes:
        """What was done to the silent one, as inotify tells it."""
        return self._listener.read()

    def close(self) -> None:
        """End the song."""
        self._stop.set()
        self._singer.join()
        self._listener.close()

    def _sing(self) -> None:
        for number in itertools.count():
            for place in (self.singing, self.singing / "sub", self.singing / "sub" / "below"):
                verse = place / f"{SONG}-{number}"
                verse.mkdir()
                verse.rmdir()
            (self.singing / "key").write_text(str(number))
            self.verses = number
            if self._stop.wait(0.001):
                return


class Hunt:
    """Looks for an escape of one daemon for as long as the context lasts, and fails at its end if there was one."""

    def __init__(self, daemon: Daemon, canaries: Canaries, more: Iterable[Path] = ()) -> None:
        """``more`` are other places of the host where nothing may be watched."""
        self.daemon: Final = daemon
        self._canaries = canaries
        self._forbidden = canaries.forbidden | {inode(path) for path in more}
        self._stop = threading.Event()
        self._looker = threading.Thread(target=self._look, name="hunt", daemon=True)
        self._woken = b""
        self.looks = 0
        self.escapes: set[Inode] = set()

    def __enter__(self) -> Self:
        self._begin = len(self.daemon.lines)
        self._verse = self._canaries.verses
        self._looker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            looks, verse = self.looks, self._canaries.verses
            until(lambda: self.looks > looks + 2 and self._canaries.verses > verse + 2, "another look, another verse")
        self._stop.set()
        self._looker.join()
        if kind is None:
            found = self.findings()
            assert not found, "\n".join(found)

    def findings(self) -> list[str]:
        """What was found so far, in words."""
        found = [f"inode {number} of device {device:#x} was watched" for device, number in sorted(self.escapes)]
        found += [f"logged: {line}" for line in self.daemon.lines[self._begin :] if SONG in line][:5]
        self._woken += self._canaries.woken()
        return [*found, f"the silent canary was opened or read: {self._woken!r}"] if self._woken else found

    def _look(self) -> None:
        while True:
            # Counted when it is done, so that one more look begun and ended after a moment can be waited for.
            self.escapes |= watched(self.daemon.pid) & self._forbidden
            self.looks += 1
            if self._stop.wait(_NEXT_LOOK_S):
                return


def create(daemon: Daemon, cid: str, *paths: str, pod: str, **subject: Any) -> argus_pb2.ArgusdHandle:
    """CreateWatch for one container, as a controller calls it."""
    wanted = argus_pb2.ArgusWatcherSubject(path=paths, **{"event": ["create", "modify", "delete"], **subject})
    config = argus_pb2.ArgusdConfig(name="w1", nodeName="node1", podName=pod, cid=[cid], subject=[wanted])
    handle: argus_pb2.ArgusdHandle = daemon.stub.CreateWatch(config, timeout=WAIT_S)
    return handle


def destroy(daemon: Daemon, pod: str) -> None:
    """DestroyWatch for a pod."""
    daemon.stub.DestroyWatch(argus_pb2.ArgusdConfig(nodeName="node1", podName=pod), timeout=WAIT_S)


def event_of(daemon: Daemon, pod: str, name: str) -> dict[str, Any] | None:
    """The first event of a pod about an entry of this name."""
    return next((event for event in daemon.events if event["pod"] == pod and event["file"] == name), None)


def report(box: HostileContainer, daemon: Daemon, pod: str, folder: str, name: str) -> None:
    """Make a file in the container and wait until it is reported: the watch works."""
    box.exec(["touch", f"{folder}/{name}"])
    until(lambda: event_of(daemon, pod, name), f"an event of {folder}/{name}")
