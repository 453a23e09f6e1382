"""The rights that the daemon has, what it needs them for, and what the lack of one means (capabilities(7))."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = [
    "AUDIT_WRITE",
    "DAC_READ_SEARCH",
    "SYS_ADMIN",
    "SYS_ADMIN_TO_GUARD",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "Right",
    "held",
    "missing",
    "needed",
    "warning",
]


@dataclass(frozen=True, slots=True)
class Right:
    """A capability, by its name and number in linux/capability.h."""

    name: str
    number: int
    without: str
    """What cannot be done without it; ``{done}`` is what the daemon does."""
    instead: int | None = None
    """Another capability that does as well."""

    def __str__(self) -> str:
        """Return the name."""
        return self.name


SYS_PTRACE: Final = Right(
    "CAP_SYS_PTRACE",
    19,
    "processes of other users, and those with more capabilities than the daemon's, are not {done}",
)
DAC_READ_SEARCH: Final = Right(
    "CAP_DAC_READ_SEARCH", 2, "files and directories that are closed to the daemon's user are not {done}", instead=1
)
SYS_ADMIN: Final = Right("CAP_SYS_ADMIN", 21, "no container is {done}, because setns needs it")
SYS_CHROOT: Final = Right("CAP_SYS_CHROOT", 18, "no container is {done}, because setns needs it")
SYS_ADMIN_TO_GUARD: Final = Right("CAP_SYS_ADMIN", 21, "nothing is guarded, because fanotify_init needs it")
AUDIT_WRITE: Final = Right("CAP_AUDIT_WRITE", 29, "guards with `audit` are refused")

_DONE: Final = {"argus": "watched", "janus": "guarded"}


def needed(enter: str, services: Collection[str] = ("argus",)) -> tuple[Right, ...]:
    """Return what it takes for any container; ``enter`` is the way into it, ``openat2`` or ``setns``."""
    rights = [SYS_PTRACE, DAC_READ_SEARCH]
    if enter != "openat2":
        rights += [SYS_ADMIN, SYS_CHROOT]
    if "janus" in services:
        rights += [SYS_ADMIN_TO_GUARD, AUDIT_WRITE]
    return tuple(rights)


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


def warning(enter: str, bits: int, uid: int | None = None, services: Collection[str] = ("argus",)) -> str:
    """Return what the operator must be told at the start, in one line; empty when nothing is missing."""
    lacking = missing(needed(enter, services), bits)
    if not lacking:
        return ""
    uid = os.geteuid() if uid is None else uid
    who = f"Running as user {uid}, not as root, and without" if uid else "Running without"
    done = " or ".join(_DONE[service] for service in services)
    costs = "; ".join(f"{right}: {right.without.format(done=done)}" for right in lacking)
    return f"{who} {', '.join(dict.fromkeys(map(str, lacking)))}. {costs}"
