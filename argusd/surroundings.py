"""What the operator must be told at the start about the place where the daemon runs, and why it cannot start there."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from argusd import descriptors, privileges
from argusd.processes import pidfds_work
from argusd.refusals import WATCH_LIMIT, exhausted, reason, sysctl

if TYPE_CHECKING:
    from collections.abc import Iterator

    from argusd.flags import Settings

__all__ = ["engine_failure", "no_proc", "warnings"]

_INSTANCE_LIMIT: Final = "fs.inotify.max_user_instances"
_NODE_PID_NAMESPACE: Final = 0xEFFFFFFC  # PROC_PID_INIT_INO in linux/proc_ns.h
_ANY_HOST: Final = frozenset({"", "[::]", "0.0.0.0"})  # noqa: S104  (to be compared with)
_HIDING: Final = ("hidepid=1", "hidepid=2", "hidepid=4", "hidepid=noaccess", "hidepid=invisible", "hidepid=ptraceable")


def no_proc() -> str:
    """Return why the daemon cannot start without /proc; empty when that is there."""
    if Path("/proc/self/stat").exists():
        return ""
    return "/proc is not mounted here: containers are found, and entered, through it"


def engine_failure(error: OSError, enter: str) -> str:
    """Return why the watch engine could not be made; ``enter`` is that of the command line."""
    match error.errno:
        case errno.ENOSYS | errno.EPERM:
            return f"-enter={enter}: {error.strerror}; use -enter=setns"
        case errno.ENOSPC:
            return f"No inotify watches are left for the daemon: raise {WATCH_LIMIT}, which is {sysctl(WATCH_LIMIT)}"
        case errno.EMFILE if not _descriptors_left():
            return f"The watch engine cannot start: {exhausted(error)}"
        case errno.EMFILE:
            limit = f"raise {_INSTANCE_LIMIT}, which is {sysctl(_INSTANCE_LIMIT)}"
            return f"No inotify instances are left for this user: {limit}"
    return f"The watch engine cannot start: {reason(error)}"


def _descriptors_left() -> bool:
    try:
        os.close(os.dup(0))
    except OSError:
        return False
    return True


def warnings(settings: Settings, enter: str, *, secure: bool) -> Iterator[str]:
    """Give one line for each thing; ``enter`` is the way into containers, ``secure`` whether TLS is served."""
    if not secure:
        yield from _plaintext(settings)
    if few := descriptors.warning(descriptors.limit()):
        yield few
    if not _sees_node():
        yield (
            "This is not the node's PID namespace (hostPID: true, docker --pid=host): "
            "no container of the node is found, only processes of this one"
        )
    if _hides_processes():
        yield (
            "/proc is mounted with hidepid and the daemon lacks CAP_SYS_PTRACE: "
            "containers whose processes belong to other users are not found"
        )
    if not pidfds_work():
        yield (
            "pidfd_open(2) is refused (it needs Linux 5.3 and a seccomp profile that knows it): "
            "the daemon looks for the end of containers 20 times a second"
        )
    if lacking := privileges.warning(enter, privileges.held(), services=settings.services):
        yield lacking


def _plaintext(settings: Settings) -> Iterator[str]:
    if settings.tlscafile or settings.tlscertfile or settings.tlskeyfile:
        yield "TLS files are given without -tls: serving plaintext, clients are not verified"
    elif settings.address.rpartition(":")[0] in _ANY_HOST and not settings.address.startswith("unix:"):
        yield (
            f"Serving plaintext on {settings.address}, all interfaces: whoever reaches the port can use the daemon, "
            "which runs with the node's rights; use -tls, or -address=127.0.0.1:50051"
        )


def _sees_node() -> bool:
    """Whether this PID namespace is the node's.

    The node of a cluster in containers (kind) has one of its own: there process 1 is in another cgroup than we.
    """
    try:
        if Path("/proc/self/ns/pid").stat().st_ino == _NODE_PID_NAMESPACE:
            return True
        return Path("/proc/1/cgroup").read_bytes() != Path("/proc/self/cgroup").read_bytes()
    except OSError:
        return True  # that says something else


def _hides_processes() -> bool:
    if not privileges.missing([privileges.SYS_PTRACE], privileges.held()):
        return False
    try:
        mounts = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return False
    return any(" /proc " in line and any(word in line.split(" - ")[-1] for word in _HIDING) for line in mounts)
