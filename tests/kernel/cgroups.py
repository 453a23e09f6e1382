"""Cgroups of our own, and processes in them: what a runtime makes of a container, as far as finding it goes."""

from __future__ import annotations

import errno
import os
import secrets
import subprocess
import time
from pathlib import Path

from argusd.containers import find
from tests.waiting import until

TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def new_id() -> str:
    """Return a full container id that nobody has."""
    return secrets.token_hex(32)


def mount_point(version: str) -> Path | None:
    """Where cgroup v2, or some hierarchy of v1, is mounted for us to write to."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, kind, options, *_ = line.split()
        named = kind == "cgroup" and "name=" in options
        if (kind == "cgroup2" if version == "v2" else named) and os.access(point, os.W_OK):
            return Path(point)
    return None


class Cgroups:
    """A folder of cgroups of our own, and the processes that were put there."""

    def __init__(self, top: Path) -> None:
        """``top`` must not exist; :meth:`remove` takes it away with everything in it."""
        self.top = top
        self.top.mkdir()
        self._started: list[subprocess.Popen[str]] = []

    def make(self, path: str) -> Path:
        """Make a cgroup; ``path`` is below our folder."""
        folder = self.top / path
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def start(self, folder: Path, *wrapper: str, script: str = "") -> subprocess.Popen[str]:
        """Start a shell in a cgroup, through ``wrapper`` if any; it runs ``script``, says so and waits."""
        inner = f"{script}\necho ready\nread x"
        command = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(folder), *wrapper, "sh", "-c", inner]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    def start_later(self, than: int, folder: Path, *wrapper: str, script: str = "") -> subprocess.Popen[str]:
        """Start a shell whose start time differs from that of the process ``than``."""
        until(lambda: time.clock_gettime(time.CLOCK_BOOTTIME) > (start_time(than) + 2) * TICK_S, "the next tick")
        return self.start(folder, *wrapper, script=script)

    def start_init(self, folder: Path) -> int:
        """Start process 1 of a new pid namespace; its parent outside of it is in the cgroup, too, and older."""
        parent = self.start(folder, "unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
        return child_of(parent.pid)

    def remove(self) -> None:
        """End the processes and remove the folders."""
        for process in self._started:
            process.kill()
            process.communicate()
        for folder, _, _ in os.walk(self.top, topdown=False):
            until(lambda folder=folder: removed(Path(folder)), f"{folder} is empty")  # type: ignore[misc]  # of any type


def removed(folder: Path) -> bool:
    """Remove a cgroup if its last process has gone."""
    try:
        folder.rmdir()
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


def stat_fields(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the third on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def start_time(pid: int) -> int:
    """Return when a process started, in ticks."""
    return int(stat_fields(pid)[19])


def child_of(pid: int) -> int:
    """Return the one child of a process."""
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


def descriptors() -> set[str]:
    """Return our open descriptors, but for that of the listing."""
    return {link.name for link in Path("/proc/self/fd").iterdir() if link.exists() or link.is_symlink()}


def found_pid(full: str) -> int | None:
    """Return the pid that stands for a container."""
    containers_by_id = find([full])
    for container in containers_by_id.values():
        container.close()
    return containers_by_id[full].pid if full in containers_by_id else None
