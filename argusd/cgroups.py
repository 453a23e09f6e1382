"""Which cgroups are containers, and which processes are in them.

Some facts about cgroups and containers:

- ``/proc/PID/cgroup`` names the container for every runtime, on cgroup v1, v2 and both at once, from the host and from
  a private cgroup namespace. It is the kernel's word, and the only one that is believed here.
- The tree below ``/sys/fs/cgroup`` says the same the other way round, at a cost that does not grow with the processes
  of the node. It may be mounted in part, or not at all; so it proposes processes, and ``/proc`` confirms them.
- A container that has cgroups of its own to make can name one after another container. It lies below its own then:
  the number of containers that a cgroup lies in, its *depth*, tells the two apart.
- ``cgroup.procs`` lists 0 for a process outside of our pid namespace.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Final

from argusd import processes

__all__ = [
    "TREE",
    "children",
    "container_in",
    "depths",
    "depths_in",
    "directories",
    "members",
    "named",
    "pids_below",
    "pod_in",
    "trees",
]

TREE: Final = Path("/sys/fs/cgroup")

# One component of a cgroup path that stands for a container. With a prefix: the scopes of systemd, and what CRI-O and
# podman call a plain folder. Without one: the folders of docker and containerd, also in the form
# "system.slice:docker:<id>" that a runtime makes of a systemd path when it manages cgroups by itself.
# The prefix must be followed by the id at once: crio-conmon-<id>.scope is the container's monitor, outside of it.
_COMPONENT: Final = re.compile(
    rb"/(?:"
    rb"(?:docker|cri-containerd|crio|libpod|nerdctl|runc|crun)-([0-9a-f]{12,64})(?:\.scope)?"
    rb"|(?:[^/\n]*:[a-z-]+:)?([0-9a-f]{12,64})"
    rb")(?=[/\n]|$)"
)

# What a kubelet calls the cgroup of a pod, podUID or, by systemd, kubepods-burstable-podUID.slice, where the dashes of
# the uid are underscores; and what podman calls it.
_POD: Final = re.compile(rb"(?:[\w-]*-)?(?:libpod_pod_|pod)([0-9A-Za-z_-]{1,64})(?:\.slice)?")

_PROCS: Final = b"cgroup.procs"
_PROCS_BYTES: Final = 1 << 23  # every pid that a kernel can have
_CGROUP_BYTES: Final = 1 << 17  # a path of up to 4 KiB for each of a dozen hierarchies
_FOLDERS: Final = 16_384  # of one hierarchy or one container; whoever makes more does not make us look at them
_FIRST: Final = ("systemd", "unified")  # every runtime uses these; the fewer files a cgroup has, the sooner it is read


def depths(pid: int) -> dict[bytes, int]:
    """The ids of the containers that hold a process, each with the number of ids above it in the path."""
    return depths_in(processes.read(f"/proc/{pid}/cgroup", _CGROUP_BYTES))


def depths_in(text: bytes) -> dict[bytes, int]:
    """The same from the text of ``/proc/PID/cgroup`` (cgroups(7)); the least depth that any hierarchy has."""
    found: dict[bytes, int] = {}
    for line in text.splitlines():
        for depth, groups in enumerate(_COMPONENT.findall(line)):
            full = groups[0] or groups[1]
            found[full] = min(depth, found.get(full, depth))
    return found


def trees(top: Path = TREE) -> Iterator[Path]:
    """The hierarchies that are mounted at ``top`` (v2), or one by one right below it (v1, hybrid), best first.

    A hierarchy is known by its ``cgroup.procs``: where nothing is mounted there is none. Mounts elsewhere are left
    alone, because the way to them may lead through a container.
    """
    if (top / os.fsdecode(_PROCS)).exists():
        yield top
        return
    try:
        with os.scandir(top) as entries:
            names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:  # not mounted into our container, or not ours to see
        return
    ranks = {name: rank for rank, name in enumerate(_FIRST)}
    for name in sorted(names, key=lambda name: (ranks.get(name, len(ranks)), name)):
        if (top / name / os.fsdecode(_PROCS)).exists():
            yield top / name


def container_in(name: bytes) -> str:
    """Return the id of the container whose cgroup is called ``name``; empty when it is none of a container."""
    match = _COMPONENT.fullmatch(b"/" + name)
    return (match[1] or match[2]).decode() if match else ""


def pod_in(directory: bytes) -> str:
    """Return the uid of the pod whose cgroup is ``directory``; empty when it is none of a pod."""
    match = _POD.fullmatch(directory.rpartition(b"/")[2])
    return match[1].decode().replace("_", "-") if match else ""


def directories(pid: int, full: str, top: Path = TREE) -> list[bytes]:
    """Return the cgroups of the container ``full`` with process ``pid``, one in each hierarchy that tells of it first.

    A path in ``/proc`` begins at our cgroup namespace, and what is mounted at ``top`` may begin elsewhere; where the
    one does not lead into the other the tree is searched. Blocks: about 15 µs a directory then.
    """
    text = processes.read(f"/proc/{pid}/cgroup", _CGROUP_BYTES)
    paths = {line.split(b":", 2)[2] for line in text.splitlines() if line.count(b":") >= 2}
    inner = {
        path[: match.end()] for path in paths for match in _COMPONENT.finditer(path) if full.encode() in match.group()
    }
    found = []
    hierarchies = list(trees(top))
    for tree in [tree for tree in hierarchies if tree == top or tree.name in _FIRST] or hierarchies[:1]:
        root = os.fsencode(tree)
        direct = [root + path for path in inner if b"/../" not in path and os.path.isdir(root + path)]  # noqa: PTH112
        found += direct[:1] or [folder for folder, name in _containers(root) if name.decode() == full][:1]
    return found


def children(directory: bytes) -> set[str] | None:
    """Return the ids of the containers right below a cgroup; None when there is no such cgroup."""
    if not os.path.isdir(directory):  # noqa: PTH112  (bytes)
        return None
    names = (folder.rpartition(b"/")[2] for folder in _folders(directory))
    return {full for name in names if (full := container_in(name))}


def named(directories: Iterable[bytes], full: str) -> list[bytes]:
    """Return the cgroups of the container ``full`` right below ``directories``."""
    below = (folder for directory in directories for folder in _folders(directory))
    return [folder for folder in below if container_in(folder.rpartition(b"/")[2]) == full]


def members(tree: Path, ids: Collection[bytes]) -> dict[bytes, set[int]]:
    """The processes in the cgroups of the containers ``ids`` in one hierarchy, to be confirmed by :func:`depths`.

    ``ids`` are full. Containers inside of other containers are not looked for. Blocks: about 15 µs a folder, until all
    are found.
    """
    found: dict[bytes, set[int]] = {}
    for folder, full in _containers(os.fsencode(tree)):
        if full in ids and full not in found and (pids := pids_below(folder)):
            found[full] = pids
            if len(found) == len(ids):
                break
    return found


def _containers(tree: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The folder and id of each container of a hierarchy that lies in no other container."""
    waiting = [tree]
    for _ in range(_FOLDERS):
        if not waiting:
            return
        for folder in _folders(waiting.pop()):
            match = _COMPONENT.fullmatch(folder, folder.rindex(b"/"))
            if match:
                yield folder, match[1] or match[2]
            else:
                waiting.append(folder)


def pids_below(top: bytes) -> set[int]:
    """The processes of a cgroup; none when they cannot all be told."""
    pids: set[int] = set()
    waiting = [top]
    for _ in range(_FOLDERS):
        if not waiting:
            pids.discard(0)
            return pids
        folder = waiting.pop()
        waiting += _folders(folder)
        try:
            words = processes.read(folder + b"/" + _PROCS, _PROCS_BYTES).split()
        except OSError:  # removed meanwhile, or a threaded cgroup, whose processes are listed further up
            continue
        pids.update(map(int, words))
    return set()


def _folders(folder: bytes) -> list[bytes]:
    try:
        with os.scandir(folder) as entries:
            return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:  # removed meanwhile
        return []
