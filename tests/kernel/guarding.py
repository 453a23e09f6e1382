r"""Guard stories: what processes open, and what is refused and told, side by side.

    a file that is renamed over a guarded one is guarded
        guard    deny=/d/f
        rename   /d/new /d/f
        open     /d/f        -> EPERM
                             -> DENY OPEN_PERM file /d/f

The steps are those of tree stories (see story.py), done by the daemon's own process, which is never refused. ``open``,
``read``, ``list`` and the other operations of opening.py are done by a process that was executed in the container; with
``host`` before them by one of the host, with ``through`` likewise by way of /proc/PID/root, with ``init``, ``child``
and ``grandchild`` by the container's init, a child of it, and a child of that. A failure is a report, too.

``guard [deny=PATH,…] [allow=PATH,…] [event=open,access] [onlyDir] [autoAllowOwner] [as=LABEL]`` reports each path that
is not there as ``ENOENT /d/x``; with a label, its reports are ``LABEL: DENY OPEN_PERM file /d/x``. ``unguard [LABEL]``
ends it.
"""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from argusd._fanotify import EVENTS, Guards
from argusd._inotify import Engine
from argusd._output import TEXT, Output
from argusd._records import Encoder
from argusd.templates import GUARD_FIELDS, compile_format
from tests.kernel.container import Container, Way, holder_of
from tests.kernel.opening import OPERATIONS, Process
from tests.kernel.story import Step, Story, World, raw
from tests.waiting import TIMEOUT_S, until

WORDS: Final = {"open": EVENTS["OPEN_PERM"], "access": EVENTS["ACCESS_PERM"]}
GENERATIONS: Final = {"init": 0, "child": 1, "grandchild": 2}
ASKED: Final = frozenset(OPERATIONS) - {"mkdir", "rmdir", "unlink", "rename", "link"}
"""Operations that only others do; those that both may do are others' with ``in`` before them."""


class Guarding:
    """An engine and its guards, and their lines as they come."""

    def __init__(self, sentinel: Path, enter: str = "auto") -> None:
        """``sentinel`` is a file that is opened to see that everything before it was told."""
        self._sentinel = sentinel
        self._opener = Process()
        self._buffer = b""
        self._read_fd, self._write_fd = os.pipe()
        self.output = Output()
        self.output.add_descriptor(self._write_fd, TEXT)
        self.engine = Engine(self.output, enter)
        self.engine.start()
        self.guards = Guards(self.output)
        self._labels: dict[str, int] = {}
        for event in EVENTS:
            self.guard(f"sentinel {event}", os.getpid(), deny=[], allow=[os.fsencode(sentinel)], mask=EVENTS[event])

    def guard(
        self,
        label: str,
        pid: int,
        *,
        deny: Iterable[bytes] = (),
        allow: Iterable[bytes] = (),
        mask: int = EVENTS["OPEN_PERM"],
        only_dir: bool = False,
        auto_allow_owner: bool = False,
        audit: bool = False,
    ) -> tuple[int, ...]:
        """Guard from now on; returns an errno or 0 for each path."""
        number = self.prepare(
            label, pid, deny=deny, allow=allow, mask=mask, only_dir=only_dir, auto_allow_owner=auto_allow_owner,
            audit=audit,
        )  # fmt: skip
        try:
            armed = self.engine.arm(number)
        except OSError:
            self.engine.switch([], [number])
            raise
        self.engine.switch([number], [])
        self._labels[label] = number
        return armed.errors

    def prepare(
        self,
        label: str,
        pid: int,
        *,
        deny: Iterable[bytes] = (),
        allow: Iterable[bytes] = (),
        mask: int = EVENTS["OPEN_PERM"],
        only_dir: bool = False,
        auto_allow_owner: bool = False,
        audit: bool = False,
    ) -> int:
        """Register a guard that does nothing yet; returns its number."""
        template = compile_format("{pod}: {response} {event} {ftype} {path}", GUARD_FIELDS)
        pidfd = holder_of(pid)
        try:
            return self.engine.guard(
                self.guards, Encoder(template.segments, label, "", "", "", [], kind="guard"), pid, pidfd,
                list(deny), list(allow), mask, only_dir, auto_allow_owner, audit,
            )  # fmt: skip
        finally:
            os.close(pidfd)

    def unguard(self, label: str) -> None:
        """End a guard."""
        self.engine.switch([], [self._labels.pop(label)])

    def replace(self, label: str, new_label: str, number: int) -> None:
        """Let a guard that was prepared and armed take the place of another one."""
        self._labels[new_label] = number
        self.engine.switch([number], [self._labels.pop(label)])

    def settle(self) -> None:
        """Wait until nothing is left to be done for what the engine has seen."""
        until(self.engine.settled, "the engine comes to rest")

    def lines(self) -> list[str]:
        """Every line of what was opened until now, ``LABEL: RESPONSE EVENT FTYPE PATH``."""
        self.settle()
        assert self._opener.do("read", self._sentinel) == ""
        found: list[str] = []
        deadline = time.monotonic() + TIMEOUT_S
        last = {f"sentinel {event}: ALLOW {event} file {self._sentinel}" for event in EVENTS}
        while True:
            *whole, self._buffer = self._buffer.split(b"\n")
            found += [line.decode().split("] ", 1)[1] for line in whole]
            if last <= set(found):
                return [line for line in found if not line.startswith("sentinel ")]
            left_s = max(0.0, deadline - time.monotonic())
            assert select.select([self._read_fd], [], [], left_s)[0], f"no sentinel, only {found}"
            self._buffer += os.read(self._read_fd, 1 << 20)

    def close(self) -> None:
        """Stop everything, and close all descriptors."""
        self.guards.close()
        self.engine.close()
        assert self.output.close(TIMEOUT_S)
        self._opener.close()
        for descriptor in (self._read_fd, self._write_fd):
            os.close(descriptor)


def _plain(path: str) -> str:
    return os.fsdecode(raw(path))


class GuardStage:
    """Plays one story."""

    def __init__(self, folder: Path, way: Way = Way.OPENAT2) -> None:
        """Make a world in ``folder``, to be entered by ``way``."""
        for name in ("root/d", "root/e"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "sentinel").write_text("-")
        self.world = World(folder / "root")
        self.container = Container(folder / "root", own_mounts=way.own_mounts)
        self.host = Process()
        self.inside = Process(self.container)
        self.init = Process(self.container)  # a container of its own, in the same root: its init can open files
        self.guarding = Guarding(folder / "sentinel", way.enter)

    def play(self, story: Story) -> None:
        """Do each step and compare; AssertionError names the first that was reported otherwise."""
        for step in story.steps:
            reported = [*self._do(step), *(line.removeprefix("-: ") for line in self.guarding.lines())]
            if reported != list(step.reports):
                told = "\n".join(
                    f"    {kind:8} {line}"
                    for kind, lines in (("expected", step.reports), ("got", reported))
                    for line in lines or ["(nothing)"]
                )
                raise AssertionError(f"{story.title}, line {step.line}: {' '.join(step.words)}\n{told}")

    def _do(self, step: Step) -> Iterator[str]:
        words = " ".join(step.words)
        for part in words.split(";"):
            yield from self._do_one(part.split())

    def _do_one(self, words: list[str]) -> Iterator[str]:
        match words:
            case ["guard", *options]:
                yield from self._guard(options)
            case ["unguard", *label]:
                self.guarding.unguard(label[0] if label else "-")
            case ["through", operation, path]:
                yield from filter(None, [self.host.do(operation, f"/proc/{self.init.pid}/root{_plain(path)}")])
            case ["host", operation, path]:
                yield from filter(None, [self.host.do(operation, f"{self.world.root}{_plain(path)}")])
            case [("init" | "child" | "grandchild") as who, operation, path]:
                yield from filter(None, [self.init.do(operation, _plain(path), generation=GENERATIONS[who])])
            case ["in", operation, *paths]:
                yield from filter(None, [self.inside.do(operation, _plain(" ".join(paths)))])
            case [operation, path] if operation in ASKED:
                yield from filter(None, [self.inside.do(operation, _plain(path))])
            case [operation, *arguments]:
                self.world.operations[operation](*arguments)

    def _guard(self, options: list[str]) -> Iterator[str]:
        given = dict(option.partition("=")[::2] for option in options)
        deny, allow = ([path for path in given.get(kind, "").split(",") if path] for kind in ("deny", "allow"))
        errors = self.guarding.guard(
            given.get("as", "-"),
            self.init.pid,
            deny=map(os.fsencode, deny),
            allow=map(os.fsencode, allow),
            mask=sum(WORDS[word] for word in given.get("event", "open").split(",")),
            only_dir="onlyDir" in given,
            auto_allow_owner="autoAllowOwner" in given,
        )
        for path, error in zip([*deny, *allow], errors, strict=True):
            if error:
                yield f"{errno.errorcode[error]} {path}"

    def close(self) -> None:
        """End everything."""
        self.guarding.close()
        for process in (self.host, self.inside, self.init):
            process.close()
        self.container.close()
        self.world.close()
