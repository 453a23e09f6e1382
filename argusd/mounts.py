"""Which file systems at a path may keep whoever asks them waiting: those whose answers come from a server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from argusd import processes

__all__ = ["Mount", "parse", "servers_at", "that_may_wait"]

_MOUNTINFO_BYTES: Final = 256 * 1024
_NAMED: Final = 3
_ESCAPED: Final = re.compile(rb"\\([0-7]{3})")
_NETWORK: Final = {"9p", "afs", "autofs", "beegfs", "ceph", "cifs", "coda", "gpfs", "lustre", "nfs", "nfs4", "smb3"}
_SHARED: Final = {"gfs2", "ocfs2"}
_LOCAL: Final = {"fuse", "fuseblk", "virtiofs"}
_SERVED: Final = frozenset(_NETWORK | _SHARED | _LOCAL)


class Mount(NamedTuple):
    """Where something is mounted, as the process sees it, and the type of the file system, like ``fuse.sshfs``."""

    place: str
    kind: str


def that_may_wait(pid: int, path: str) -> list[str]:
    """Return words for a message on ``path``, as the process ``pid`` sees it; nothing when it has ended."""
    return [f"'{mount.place}' is {mount.kind}" for mount in servers_at(pid_mounts(pid), path)[:_NAMED]]


def pid_mounts(pid: int) -> list[Mount]:
    """Return the mounts that a process sees, the latest last. Asks no file system but proc."""
    return list(parse(processes.read(f"/proc/{pid}/mountinfo", _MOUNTINFO_BYTES)))


def parse(mountinfo: bytes) -> Iterator[Mount]:
    """Read ``/proc/PID/mountinfo``, see proc_pid_mountinfo(5); what is cut off or malformed is left out."""
    for line in mountinfo.split(b"\n"):
        before, separator, after = line.partition(b" - ")
        fields = before.split(b" ")
        if separator and len(fields) > 4:  # the fifth is the mount point
            yield Mount(_unescape(fields[4]), after.split(b" ")[0].decode(errors="replace"))


def servers_at(mounts: list[Mount], path: str) -> list[Mount]:
    """Return those with a server on the way to ``path`` or below it, else the one that it lies on."""
    path = "/" + path.strip("/")
    below = [mount for mount in mounts if _contains(path, mount.place)]
    above = [mount for mount in mounts if _contains(mount.place, path)]
    served = [mount for mount in dict.fromkeys(above + below) if _is_served(mount.kind)]
    return served or sorted(above, key=lambda mount: len(mount.place))[-1:]


def _is_served(kind: str) -> bool:
    return kind.partition(".")[0] in _SERVED


def _contains(place: str, path: str) -> bool:
    return path == place or path.startswith(place.rstrip("/") + "/")


def _unescape(name: bytes) -> str:
    return _ESCAPED.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), name).decode(errors="backslashreplace")
