"""Why a request is refused: the errors that services turn into a status, and the words for what the kernel said."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from argusd import descriptors, privileges
from argusd._inotify import DeniedError

if TYPE_CHECKING:
    from argusd.containers import Container

__all__ = [
    "MARK_LIMIT",
    "WATCH_LIMIT",
    "AccessDeniedError",
    "CannotGuardError",
    "LimitReachedError",
    "NoContainerError",
    "OutOfTimeError",
    "RequestRefusedError",
    "StoppingError",
    "container_label",
    "exhausted",
    "forbidden",
    "reason",
    "refusal",
    "sysctl",
    "watch_limit",
]

WATCH_LIMIT: Final = "fs.inotify.max_user_watches"
_NAMESPACE_WATCH_LIMIT: Final = "user.max_inotify_watches"
FILE_LIMIT: Final = "fs.file-max"
MARK_LIMIT: Final = "fs.fanotify.max_user_marks"


class RequestRefusedError(Exception):
    """A request that cannot be carried out; ``str()`` is for the client. Nothing was changed."""


class NoContainerError(RequestRefusedError):
    """None of the containers is running."""


class LimitReachedError(RequestRefusedError):
    """The kernel has no more of something to give."""


class AccessDeniedError(RequestRefusedError):
    """The daemon has not the rights."""


class CannotGuardError(RequestRefusedError):
    """What is asked for cannot be guarded by this kernel or on its file system."""


class OutOfTimeError(RequestRefusedError):
    """What must be done before the answer took too long."""


class StoppingError(RequestRefusedError):
    """The daemon is about to end."""


def refusal(error: OSError, container: Container) -> RequestRefusedError:
    """Return what to tell the client of an error in a container that has nothing to do with what was asked for."""
    where = container_label(container)
    if error.errno == errno.ENOSPC:
        name, value = watch_limit()
        return LimitReachedError(f"no inotify watches left for {where}: {name} is {value}")
    if error.errno in {errno.ENOMEM, errno.EMFILE, errno.ENFILE}:
        return LimitReachedError(f"cannot arm {where}: {exhausted(error)}")
    if isinstance(error, DeniedError):
        if error.step == "root":
            return forbidden(f"cannot see the root of {where}", error, privileges.SYS_PTRACE)
        return forbidden(f"cannot enter {where} with setns", error, privileges.SYS_ADMIN, privileges.SYS_CHROOT)
    return RequestRefusedError(f"cannot look into {where}: {reason(error)}")


def exhausted(error: OSError) -> str:
    """Return what there is no more of, for EMFILE, ENFILE and ENOMEM, and which limit that is."""
    match error.errno:
        case errno.EMFILE:
            return f"no file descriptors left: the daemon may have {descriptors.limit()} (RLIMIT_NOFILE)"
        case errno.ENFILE:
            return f"no files left on the node: {FILE_LIMIT} is {sysctl(FILE_LIMIT)}"
        case _:
            return f"no memory left: {reason(error)}"


def reason(error: OSError) -> str:
    """Return what the kernel said, and about which file, without the marks of Python."""
    text = error.strerror or str(error)
    return f"{text}: '{os.fsdecode(error.filename)}'" if error.filename else text


def forbidden(what: str, error: OSError, *wanted: privileges.Right) -> AccessDeniedError:
    """Say which of the capabilities ``wanted`` the daemon lacks for ``what``, or that none of them would help."""
    lacking = privileges.missing(wanted, privileges.held())
    if lacking:
        return AccessDeniedError(f"{what}: the daemon lacks {' and '.join(map(str, lacking))}")
    return AccessDeniedError(
        f"{what}: {error.strerror}, although the daemon has {' and '.join(map(str, wanted))}; "
        "a security module, a seccomp profile or a user namespace around the daemon forbids it"
    )


def container_label(container: Container) -> str:
    """Return what to call a container in a message."""
    return f"container {container.id}" if container.id else f"process {container.pid}"


def watch_limit() -> tuple[str, str]:
    """Return the name and value of the sysctl that limits watches: in a user namespace that may be its own."""
    limits = [(name, sysctl(name)) for name in (WATCH_LIMIT, _NAMESPACE_WATCH_LIMIT)]
    known = [(name, value) for name, value in limits if value.isdecimal()]
    return min(known, key=lambda limit: int(limit[1]), default=limits[0])


def sysctl(name: str) -> str:
    """Return the current value of a sysctl, for a message."""
    try:
        return Path("/proc/sys", *name.split(".")).read_text().strip()
    except OSError as error:
        return f"unknown ({error.strerror})"
