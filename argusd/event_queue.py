"""The length of the kernel's event queue: the sysctl through which it is raised for a moment, and its lock.

The sysctl is the whole node's. Two daemons that raise it at the same moment could each put back what the other one had
written, so each holds a lock on the file meanwhile. A container can hold it as well: nobody waits for it for long.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

__all__ = ["QUEUE_LIMIT", "Sysctl", "opened", "report"]

logger = logging.getLogger("argusd.event_queue")

QUEUE_LIMIT: Final = "fs.inotify.max_queued_events"
_OWN: Final = "/proc/sys/fs/inotify/max_queued_events"
# In a container /proc/sys is read-only; the node's own is not. It is also the one that all daemons of a node see.
_NODES: Final = "/proc/1/root/proc/sys/fs/inotify/max_queued_events"
_LOCK_S: Final = 1.0
_POLL_S: Final = 0.01


@dataclass(frozen=True, slots=True)
class Sysctl:
    """The file that holds the length."""

    descriptor: int
    """-1 when it cannot be written, or is not to be."""
    errno: int
    """Why it cannot be written, else 0."""


@contextlib.contextmanager
def opened(wanted: int) -> Iterator[Sysctl]:
    """Open the sysctl, and lock it when the queue is to hold ``wanted`` events (not 0)."""
    sysctl = _open(wanted)
    try:
        if wanted and sysctl.descriptor >= 0:
            _lock(sysctl.descriptor)
        yield sysctl
    finally:
        if sysctl.descriptor >= 0:
            os.close(sysctl.descriptor)


def _open(wanted: int) -> Sysctl:
    code = 0
    for path in (_NODES, _OWN) if wanted else ():
        try:
            return Sysctl(os.open(path, os.O_RDWR | os.O_CLOEXEC), 0)
        except OSError as error:
            code = error.errno or 0
    return Sysctl(-1, code)


def _lock(descriptor: int) -> None:
    """Lock the file, or go on without after a second."""
    deadline = time.monotonic() + _LOCK_S
    while time.monotonic() < deadline:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(_POLL_S)
    logger.warning("Another process holds the lock of %s; going on without it", QUEUE_LIMIT)


def report(wanted: int, length: int, code: int) -> None:
    """Log what the instance got; ``code`` is the errno of a failed change, negative when it was not put back."""
    if code < 0:
        logger.error(
            "%s was raised to %d for the daemon's event queue and cannot be put back: %s",
            QUEUE_LIMIT,
            wanted,
            os.strerror(-code),
        )
    if wanted > length:
        logger.warning(
            "The kernel's event queue holds %d events, not the %d of -max_queued_events: %s cannot be raised (%s). "
            "Set it on the node, or let the daemon write to the node's /proc/sys (hostPID)",
            length,
            wanted,
            QUEUE_LIMIT,
            os.strerror(code),
        )
    elif length:
        logger.info("The kernel's event queue holds %d events", length)
