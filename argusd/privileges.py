"""The rights that the daemon has, what it needs them for, and what the lack of one means (capabilities(7))."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["DAC_READ_SEARCH", "SYS_ADMIN", "SYS_CHROOT", "SYS_PTRACE", "Right", "held", "missing", "needed", "warning"]


@dataclass(frozen=True, slots=True)
class Right:
    """A capability, by its name and number in linux/capability.h."""

    name: str
    number: int
    without: str
    """What cannot be done without it."""
    instead: int | None = None
    """Another capability that does as well."""

    def __str__(self) -> str:
        """Return the name."""
        return self.name


SYS_PTRACE: Final = Right(
    "CAP_SYS_PTRACE",
    19,
    "processes of other users, and those with more capabilities than the daemon's, are not watched",
)
DAC_READ_SEARCH: Final = Right(
    "CAP_DAC_READ_SEARCH", 2, "files and directories that are closed to the daemon's user are not watched", instead=1
)
SYS_ADMIN: Final = Right("CAP_SYS_ADMIN", 21, "no container is watched, because setns needs it")
SYS_CHROOT: Final = Right("CAP_SYS_CHROOT", 18, "no container is watched, because setns needs it")


def needed(enter: str) -> tuple[Right, ...]:
    """Return what it takes to watch any container; ``enter`` is the way into it, ``openat2`` or ``setns``."""
    return (SYS_PTRACE, DAC_READ_SEARCH) if enter == "openat2" else (SYS_PTRACE, DAC_READ_SEARCH, SYS_ADMIN, SYS_CHROOT)


def held(status: Path = Path("/proc/self/status")) -> int:
    """Return the effective capabilities of this process as a set of bits; all of them when that cannot be found out."""
    try:
        lines = status.read_text().splitlines()
    except OSError:
        return -1
    return next((int(line.split()[1], 16) for line in lines if line.startswith("CapEff:")), -1)


def missing(wanted: Collection[Right], bits: int) -> tuple[Right, ...]:
    """Return those of ``wanted`` that are not among the capabilities ``bits``."""
    return tuple(
        right
        for right in wanted
        if not bits & 1 << right.number and not (right.instead is not None and bits & 1 << right.instead)
    )


def warning(enter: str, bits: int, uid: int | None = None) -> str:
    """Return what the operator must be told at the start, in one line; empty when nothing is missing."""
    lacking = missing(needed(enter), bits)
    if not lacking:
        return ""
    uid = os.geteuid() if uid is None else uid
    who = f"Running as user {uid}, not as root, and without" if uid else "Running without"
    costs = "; ".join(f"{right}: {right.without}" for right in lacking)
    return f"{who} {', '.join(map(str, lacking))}. {costs}"
