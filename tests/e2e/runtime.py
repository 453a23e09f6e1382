"""What a test asks of a container runtime, whichever it is."""

from __future__ import annotations

import secrets
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import ClassVar, Final, Literal, NamedTuple, Self

from demo.container import INIT, missing_for_runc
from tests.e2e.place import Place, RuntimeFailedError

PidNamespace = Literal["own", "pod", "host"]


class Volume(NamedTuple):
    """A file or folder of the place that is mounted in a container."""

    source: Path
    target: str


@dataclass(frozen=True, slots=True)
class Shape:
    """What a container shall look like on the node."""

    cgroup: str = ""
    """Its cgroup's path, below the place's, with ``{id}``: no more than the runtime can do. Empty: as it likes."""
    pids: PidNamespace = "own"
    """Whose processes it sees: "pod" shares those of its sandbox, "host" those of the place."""
    id: str = ""
    """Its id, for a runtime that lets its caller choose; empty: any."""
    init: tuple[str, ...] = INIT
    """What it runs."""
    volumes: tuple[Volume, ...] = ()


class Runtime(ABC):
    """One way to run containers. As a context it has its daemon running."""

    programs: ClassVar[tuple[str, ...]]
    scheme: ClassVar[str]
    default_cgroup: ClassVar[str]

    def __init__(self, place: Place) -> None:
        self.place: Final = place
        self._stack = ExitStack()
        self._running: set[str] = set()

    @classmethod
    def missing(cls) -> str:
        """Why this runtime cannot be used here, in words for a skip; empty when it can."""
        if reason := missing_for_runc():
            return reason
        absent = [program for program in cls.programs if shutil.which(program) is None]
        return f"needs {', '.join(absent)}" if absent else ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, shape: Shape | None = None) -> str:
        """Start a container, one that sleeps if nothing else is said; returns its id."""
        shape = shape or Shape()
        cgroup = self.place.cgroup + (shape.cgroup or self.default_cgroup)
        container = self._run(replace(shape, cgroup=cgroup, id=shape.id or secrets.token_hex(32)))
        self._running.add(container)
        return container

    def runs(self, container: str) -> bool:
        """Whether it has not been removed yet."""
        return container in self._running

    def remove(self, container: str) -> None:
        """Kill the container and forget it."""
        self._remove(container)
        self._running.remove(container)

    def uri(self, container: str) -> str:
        """The id as a kubelet gives it."""
        return f"{self.scheme}://{container}"

    @abstractmethod
    def start(self) -> None:
        """Start the daemon that this runtime needs, if any, and give it the image."""

    @abstractmethod
    def pid(self, container: str) -> int:
        """The container's init as the runtime itself knows it, in the place's pid namespace."""

    @abstractmethod
    def exec(self, container: str, *argv: str) -> None:
        """Run a command in the container, to its end; raises when it fails."""

    @abstractmethod
    def exec_detached(self, container: str, *argv: str) -> None:
        """Start a command in the container that goes on running."""

    @abstractmethod
    def _run(self, shape: Shape) -> str: ...

    @abstractmethod
    def _remove(self, container: str) -> None: ...


def answers(call: Callable[[], object]) -> bool:
    """Whether a call of a runtime's client succeeds."""
    try:
        call()
    except RuntimeFailedError:
        return False
    return True


def above(cgroup: str) -> str:
    """The folder in which a runtime makes its containers' cgroups, for one that names those itself."""
    return str(PurePosixPath(cgroup).parent)
