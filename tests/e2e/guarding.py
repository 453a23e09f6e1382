r"""Guards of a container that a real runtime has started, by a real janusd, and all who may open files there.

Stories are those of tests/kernel/guarding.py, with other actors. Every operation has its actor before it:

- ``init``, ``child``, ``grandchild``: the container's init, a child of it, and a child of that;
- ``exec``: a process that the runtime has executed in the container, as ``docker exec`` does; ``orphan``: one that it
  has started, whose parent has ended;
- ``neighbour``: the init of another container, which has the volume ``/shared`` of the first as ``/elsewhere``;
- ``host``: a process of the node, by way of ``/proc/PID/root``; ``node``: by the path that the container's root (or
  the volume) has on the node.

Without an actor an operation is the test's own: it prepares.
"""

from __future__ import annotations

import errno
import re
import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from argusd.proto import janus_pb2
from demo.container import INIT
from tests.daemon import ROOT
from tests.e2e.opening import GENERATIONS, Opener, write_opener
from tests.e2e.place import Place, PlacedDaemon, end, until
from tests.e2e.runtime import Runtime, Shape, Volume
from tests.kernel.story import Story, World

RPC_TIMEOUT_S: Final = 5.0
STAGE: Final = "/stage"
SHARED: Final = "/shared"
ELSEWHERE: Final = "/elsewhere"
SINGLE: Final = "/etc/single.conf"
NODE: Final = "node-1"
SENTINEL: Final = "sentinel"
ACTORS: Final = frozenset({"init", "exec", "neighbour", "host", "node", "stranger", *GENERATIONS})
FOLDERS: Final = ("/data", SHARED)
"""Where stories play; empty at the beginning of each."""

ENTRY: Final = """#!{python}
import sys
sys.path.insert(0, {root!r})
from argusd.__main__ import main
sys.exit(main())
"""


def janusd_command(folder: Path, python: str) -> list[str]:
    """Install the program as pip does, and ``janusd`` as its users do: as a link to it."""
    program = folder / "argusd"
    program.write_text(ENTRY.format(python=python, root=str(ROOT)))
    program.chmod(0o755)
    (folder / "janusd").symlink_to("argusd")
    return [str(folder / "janusd")]


def create_guard(daemon: PlacedDaemon, pod: str, *cids: str, name: str = "g", **fields: Any) -> list[int]:
    """CreateGuard of one subject; returns the pids of the answer."""
    log_format = fields.pop("logFormat", "")
    subject = janus_pb2.JanusGuardSubject(**{"event": ["open"], **fields})
    request = janus_pb2.JanusdConfig(
        name=name, nodeName=NODE, podName=pod, cid=cids, subject=[subject], logFormat=log_format
    )
    return list(daemon.guards.CreateGuard(request, timeout=RPC_TIMEOUT_S).pid)


def destroy_guard(daemon: PlacedDaemon, pod: str, *pids: int) -> None:
    """DestroyGuard as the controller calls it."""
    daemon.guards.DestroyGuard(janus_pb2.JanusdConfig(nodeName=NODE, podName=pod, pid=pids), timeout=RPC_TIMEOUT_S)


def marked(daemon: PlacedDaemon) -> set[int]:
    """The inodes that the daemon has marked, by their numbers: see proc_pid_fdinfo(5).

    The groups are among the descriptors of the threads that answer, which are not those of the process.
    """
    inodes: set[int] = set()
    for info in Path(f"/proc/{daemon.pid}/task").glob("*/fdinfo/*"):
        with suppress(FileNotFoundError):  # closed meanwhile
            inodes |= {int(inode, 16) for inode in re.findall(r"^fanotify ino:(\w+)", info.read_text(), re.MULTILINE)}
    return inodes


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of proc_pid_mountinfo(5), as far as it matters here."""

    device: str
    root: str
    point: str


def mounts(process: Path) -> Iterator[Mount]:
    """What a process, given by its folder in a /proc, has mounted."""
    for line in (process / "mountinfo").read_text().splitlines():
        fields = line.split()
        yield Mount(fields[2], fields[3], fields[4])


def mounted_files(process: Path, folder: str) -> list[str]:
    """The files, not folders, that are mounted on names in a folder, as the process sees it."""
    points = [mount.point for mount in mounts(process) if Path(mount.point).parent == Path(folder)]
    return sorted(point for point in points if (process / "root" / point[1:]).is_file())


def on_node(node: Path, process: Path, path: str) -> str:
    """Where a path of a container is for the node: below some mount of it, of the same file system.

    Both are given by the folder of a process in a /proc. The container's path is below its mount with the longest name.
    """
    mine = max((m for m in mounts(process) if (path + "/").startswith(m.point.rstrip("/") + "/")), key=_length)
    inside = mine.root.rstrip("/") + "/" + path[len(mine.point) :].strip("/")
    for theirs in sorted(mounts(node), key=_length):
        if theirs.device == mine.device and (inside + "/").startswith(theirs.root.rstrip("/") + "/"):
            return theirs.point.rstrip("/") + "/" + inside[len(theirs.root) :].strip("/")
    raise LookupError(f"{path} is nowhere on the node")


def _length(mount: Mount) -> int:
    return len(mount.point)


class Stage:
    """A container to be guarded and another one beside it, of one runtime, and all who open files."""

    def __init__(self, runtime: Runtime, daemon: PlacedDaemon) -> None:
        """Nothing runs before the context is entered."""
        self.runtime: Final = runtime
        self.daemon: Final = daemon
        self.place: Final[Place] = runtime.place
        self.folder: Final = self.place.folder / f"guards-{secrets.token_hex(4)}"
        self.shared: Final = self.folder / "shared"
        self.outside: Final = self.folder / "outside"
        """A file of the node that is in no container."""
        self._stack = ExitStack()
        self._pods = 0
        self.pod = ""
        self.container = self.uri = ""
        self.pid = 0
        """The container's init, in the place."""

    def __enter__(self) -> Self:
        for path in (self.folder, self.shared):
            path.mkdir()
        for path in (self.outside, self.folder / "single.conf", self.folder / SENTINEL):
            path.write_text("-")
        write_opener(self.folder / "opener")
        with ExitStack() as stack:
            self.openers = {
                name: stack.enter_context(Opener(self.folder / name)) for name in ("init", "exec", "neighbour", "node")
            }
            self.container = stack.enter_context(self.running(SHARED, SINGLE, opener="init"))
            self.neighbour = stack.enter_context(self.running(ELSEWHERE, opener="neighbour"))
            self.runtime.exec_detached(self.container, f"{STAGE}/opener", f"{STAGE}/exec")
            stack.enter_context(self._node_process())
            self.pid = self.runtime.pid(self.container)
            self.world = World(self.process / "root")
            self.uri = self.runtime.uri(self.container)
            create_guard(self.daemon, SENTINEL, self.uri, allow=[f"{STAGE}/{SENTINEL}"])
            stack.callback(destroy_guard, self.daemon, SENTINEL)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextmanager
    def running(self, shared: str, single: str = "", opener: str = "") -> Iterator[str]:
        """A container whose init opens files, or sleeps; removed afterwards, unless it has been already."""
        volumes = [Volume(self.folder, STAGE), Volume(self.shared, shared)]
        if single:
            volumes.append(Volume(self.folder / "single.conf", single))
        init = (f"{STAGE}/opener", f"{STAGE}/{opener}") if opener else INIT
        container = self.runtime.run(Shape(init=init, volumes=tuple(volumes)))
        try:
            yield container
        finally:
            if self.runtime.runs(container):
                self.runtime.remove(container)

    @contextmanager
    def _node_process(self) -> Iterator[None]:
        command = self.place.enter(str(self.folder / "opener"), str(self.folder / "node"))
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        try:
            yield
        finally:
            end(process, [signal.SIGKILL])

    @property
    def process(self) -> Path:
        """The container's init, as a folder of the place's /proc."""
        return self.place.proc / str(self.pid)

    @contextmanager
    def act(self) -> Iterator[None]:
        """A pod of its own name, in empty folders; all of its guards end with it."""
        self._pods += 1
        self.pod = f"pod-{self._pods}-{self.container[:8]}"
        try:
            yield
        finally:
            destroy_guard(self.daemon, self.pod)
            for folder in FOLDERS:
                for path in self.world.path(folder).iterdir():
                    if path.is_symlink() or not path.is_dir():
                        path.unlink()
                    else:
                        shutil.rmtree(path)

    def guard(self, **fields: Any) -> list[int]:
        """Guard the container for this act's pod."""
        return create_guard(self.daemon, self.pod, self.uri, **fields)

    def events(self) -> list[dict[str, Any]]:
        """Everything that has been told of this act's pod until now."""
        count = sum(event["pod"] == SENTINEL for event in self.daemon.events)
        assert self.openers["init"].do("open", f"{STAGE}/{SENTINEL}") == ""
        until(lambda: sum(event["pod"] == SENTINEL for event in self.daemon.events) > count, RPC_TIMEOUT_S, "a line")
        return [event for event in self.daemon.events if event["pod"] == self.pod]

    def play(self, story: Story) -> None:
        """Do each step and compare; AssertionError names the first that went otherwise."""
        told = 0
        with self.act():
            for step in story.steps:
                reported = [answer for part in " ".join(step.words).split(";") for answer in self._do(part.split())]
                events = self.events()[told:]
                told += len(events)
                reported += [" ".join(event[key] for key in ("response", "event", "ftype", "path")) for event in events]
                where = f"{story.title}, line {step.line}: {' '.join(step.words)}"
                assert reported == list(step.reports), f"{where}: {reported}, expected {list(step.reports)}"

    def _do(self, words: Sequence[str]) -> Iterator[str]:
        match words:
            case ["guard", *options]:
                given = dict(option.partition("=")[::2] for option in options)
                self.guard(
                    deny=[path for path in given.get("deny", "").split(",") if path],
                    allow=[path for path in given.get("allow", "").split(",") if path],
                    event=given.get("event", "open").split(","),
                    onlyDir="onlyDir" in given,
                    autoAllowOwner="autoAllowOwner" in given,
                )
            case ["unguard"]:
                destroy_guard(self.daemon, self.pod)
            case ["program", path]:
                write_opener(self.world.path(path))
            case ["outside", "open"]:
                yield from filter(None, [self.openers["node"].do("open", self.outside)])
            case [who, operation, *paths] if who in ACTORS:
                yield from filter(None, [self.do(who, operation, *paths)])
            case [operation, *arguments]:
                self.world.operations[operation](*(argument.format(stage=self) for argument in arguments))

    def do(self, who: str, operation: str, *paths: str) -> str:
        """Have somebody do something; an errno's name, or nothing."""
        match who:
            case "child" | "grandchild":
                return self.openers["init"].do(operation, *paths, generation=GENERATIONS[who])
            case "orphan":
                return self.openers["exec"].do(operation, *paths, generation=GENERATIONS[who])
            case "host":
                return self.openers["node"].do(operation, *(f"/proc/{self.pid}/root{path}" for path in paths))
            case "node":
                there = [on_node(self.place.proc / "1", self.process, path) for path in paths]
                return self.openers["node"].do(operation, *there)
            case "stranger":  # this process: one that the daemon, in the place's PID namespace, does not see
                return opened(self.world.path(path) for path in paths)
            case _:
                return self.openers[who].do(operation, *paths)


def opened(paths: Iterable[Path]) -> str:
    """Open files for reading; an errno's name, or nothing."""
    try:
        for path in paths:
            path.open("rb").close()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""
