"""Where runtimes write down the init process of a container: a short cut, to be confirmed by its cgroup.

The files lie in folders of root. The container's own files are beside them or below, never on the way to them; no
component may be a link all the same. They are reached through the root of process 1: from inside a pod that shares the
host's pid namespace that is the node's root, of which nothing needs to be mounted.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import Final

__all__ = ["ROOT", "init_pid", "read_note"]

ROOT: Final = Path("/proc/1/root")

_FILES: Final = (
    "run/containerd/io.containerd.runtime.v2.task/k8s.io/{id}/init.pid",
    "run/containerd/io.containerd.runtime.v2.task/moby/{id}/init.pid",
    "run/docker/containerd/daemon/io.containerd.runtime.v2.task/moby/{id}/init.pid",
    "run/containers/storage/overlay-containers/{id}/userdata/pidfile",  # CRI-O and podman
)
_PID_BYTES: Final = 16
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC


def init_pid(full: str, root: Path = ROOT) -> int | None:
    """The pid that a runtime noted for the container ``full``, a full id; None when there is no such note."""
    for form in _FILES:
        text = read_note(root, form.format(id=full).split("/"), _PID_BYTES).strip()
        if text.isdigit():
            return int(text)
    return None


def read_note(root: Path, names: list[str], size: int) -> bytes:
    """Return the first ``size`` bytes of a file below ``root``, no link followed; nothing when it cannot be read."""
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
        folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, folder)
        for name in names[:-1]:
            folder = os.open(name, _FOLDER, dir_fd=folder)
            stack.callback(os.close, folder)
        file = os.open(names[-1], _FILE, dir_fd=folder)
        stack.callback(os.close, file)
        if stat.S_ISREG(os.fstat(file).st_mode):
            return os.read(file, size)
    return b""
