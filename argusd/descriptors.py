"""The descriptors that the process starts with, and how many it may have.

Imports nothing that opens a descriptor: this runs before everything else.
"""

from __future__ import annotations

import os
import resource
import sys
from contextlib import suppress
from typing import Final, TextIO

__all__ = ["LEAST", "limit", "open_standard", "raise_limit", "too_few", "warning"]

LEAST: Final = 64
"""With fewer the daemon does not start: libraries that meet EMFILE while they start abort the process."""

_FEW: Final = 2048  # below this, clients and containers together can use them up


def open_standard() -> None:
    """Open /dev/null in the place of each of the descriptors 0, 1 and 2 that is closed.

    Whatever is opened next would get that number otherwise, and log lines would be written into it.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            with suppress(OSError):  # in a root without /dev there is nothing better
                os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout, sys.stderr = _stream(sys.stdout, 1), _stream(sys.stderr, 2)


def _stream(stream: TextIO | None, fd: int) -> TextIO:
    """Return ``stream``, or a new one where the interpreter found the descriptor closed."""
    return open(fd, "w", closefd=False) if stream is None else stream


def raise_limit() -> int:
    """Raise the soft limit of descriptors to the hard one; returns the limit that is in force."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):  # a seccomp profile; the soft limit stays
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return limit()


def limit() -> int:
    """Return how many descriptors this process may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def too_few(allowed: int) -> str:
    """Return why the daemon cannot start with ``allowed`` descriptors; empty when it can."""
    if allowed >= LEAST:
        return ""
    return (
        f"Cannot start with at most {allowed} open files: at least {LEAST} are needed; "
        "raise the hard limit of RLIMIT_NOFILE (ulimit -n, LimitNOFILE= of systemd)"
    )


def warning(allowed: int) -> str:
    """Return what the operator must be told of a small limit; empty when it is large enough."""
    if allowed >= _FEW:
        return ""
    return (
        f"At most {allowed} open files are allowed (hard limit of RLIMIT_NOFILE), and each container and each "
        f"connection takes one: raise it to {_FEW} or more"
    )
