"""Whatever becomes of the daemon, nobody waits for it longer than it lives, and its answers are right until then."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc
import pytest

from argusd.proto import janus_pb2
from tests.load.guarding import GuardingDaemon
from tests.load.hammer import Expect, Hammer
from tests.load.watched import CALL_S, until

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, as the daemon does"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler for the processes that open files"),
    pytest.mark.slow,
    pytest.mark.timeout(3600 if "KILLS" in os.environ else 120),
]

# `make hammer` asks for more.
KILLS: Final = int(os.environ.get("KILLS", "10"))
GUARDS: Final = int(os.environ.get("GUARDS", "300"))
LOAD_S: Final = 1.5
STOP_S: Final = 1.0
PATIENCE_S: Final = 10.0
"""No open takes longer: a bound for a busy machine, far above what an answer takes."""
CLIENTS: Final = 4


@dataclass(frozen=True, slots=True)
class Tree:
    """Files that are opened all the time."""

    closed: Path
    """A directory that is denied."""
    opened: Path
    """One that is allowed."""
    mixed: Path
    """One with two files that are denied."""
    denied: list[Path]
    allowed: list[Path]
    replaced: list[Path]
    """Denied, and new files all the time."""
    spare: list[Path]
    """Files of no guard, with which nothing happens."""

    @classmethod
    def make(cls, top: Path) -> Tree:
        closed, opened, mixed, free = (top / name for name in ("closed", "opened", "mixed", "free"))
        for folder in (closed / "sub", opened / "sub", mixed, free):
            folder.mkdir(parents=True)
        files = [folder / str(number) for folder in (closed, opened, mixed, free) for number in range(3)]
        for path in files:
            path.write_text("x")
        return cls(
            closed, opened, mixed,
            denied=[closed, closed / "sub", closed / "0", closed / "1", mixed / "0"],
            allowed=[opened, opened / "sub", opened / "0", opened / "1", mixed, mixed / "2", free, free / "0"],
            replaced=[mixed / "1"],
            spare=[free / "1", free / "2", opened / "2"],
        )  # fmt: skip

    def guard(self, daemon: GuardingDaemon) -> None:
        """Guard all of it: directories with audit, files without, so that two groups are asked about some files."""
        daemon.guard([self.closed], [self.opened], name="directories", audit=True)
        daemon.guard([self.mixed / "0", self.mixed / "1", self.closed / "0"], [self.opened / "0"], name="files")

    def watch(self, daemon: GuardingDaemon) -> None:
        """Watch directories and files, such as are guarded themselves and such as only their directory is.

        Of the last kind a process that waits for an answer holds up the end of whoever watches the file.
        """
        folders = [self.closed, self.opened, self.mixed]
        daemon.watch(*folders, *(folder / name for folder in folders for name in "01"))


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree.make(tmp_path / "t")


@pytest.fixture
def hammer(tmp_path: Path, tree: Tree) -> Iterator[Hammer]:
    with Hammer(tmp_path, denied=tree.denied, allowed=tree.allowed, replaced=tree.replaced) as hammer:
        yield hammer


def load(hammer: Hammer, seconds: float = LOAD_S) -> None:
    """Let the processes work for a while under guard, and see that each of them comes round."""
    hammer.expect(Expect.GUARDED)
    threading.Event().wait(seconds)
    hammer.go_round()
    assert hammer.wrong() == []


def let_go(hammer: Hammer) -> None:
    """See that nobody waits for a daemon that is gone, and that every file can be opened."""
    hammer.expect(Expect.FREE)
    hammer.go_round()
    assert hammer.wrong() == []
    hammer.expect(Expect.LITTLE)


@pytest.mark.parametrize(
    "daemon",
    [
        pytest.param(GuardingDaemon(module="benchmarks.busy_daemon"), id="python-is-busy"),
        pytest.param(GuardingDaemon(blocked=True), id="nobody-reads-the-log"),
    ],
)
def test_answers_are_right_and_prompt_while(daemon: GuardingDaemon, tree: Tree, hammer: Hammer) -> None:
    with daemon:
        tree.watch(daemon)
        tree.guard(daemon)
        load(hammer)
        hammer.expect(Expect.ANYTHING)
        assert daemon.end(signal.SIGTERM) < CALL_S
        let_go(hammer)
    assert hammer.longest_s < PATIENCE_S


def test_answers_are_right_and_prompt_while_guards_come_and_go(tree: Tree, hammer: Hammer) -> None:
    with GuardingDaemon() as daemon:
        tree.watch(daemon)
        tree.guard(daemon)
        hammer.expect(Expect.GUARDED)

        def come_and_go(number: int) -> None:
            deny, allow = [tree.spare[number % 2], tree.closed / "1"], [tree.opened, tree.spare[2]]
            request = daemon.guard_request(deny, allow, podName=f"pod{number}", audit=number % 2 == 0)
            daemon.guards.CreateGuard(request, timeout=CALL_S)
            daemon.guards.DestroyGuard(request, timeout=CALL_S)

        with ThreadPoolExecutor(CLIENTS) as clients:
            list(clients.map(come_and_go, range(10 * CLIENTS)))
            before = daemon.native_threads()
            list(clients.map(come_and_go, range(GUARDS)))
        hammer.go_round()
        assert hammer.wrong() == []
        state = daemon.guards.GetGuardState(janus_pb2.Empty(), timeout=CALL_S)
        assert {handle.podName for handle in state} == {"pod"}
        until(lambda: daemon.native_threads() == before, "all threads that made guards have ended")
    assert hammer.longest_s < PATIENCE_S


def test_nobody_waits_for_a_stopped_daemon_longer_than_it_is_stopped(tree: Tree, hammer: Hammer) -> None:
    with GuardingDaemon() as daemon:
        tree.watch(daemon)
        tree.guard(daemon)
        load(hammer, 0.0)
        assert hammer.longest_s < PATIENCE_S
        begun = time.monotonic()
        daemon.process.send_signal(signal.SIGSTOP)
        until(lambda: all(slot.begun_ns for slot in hammer.slots), "all wait for an answer")
        threading.Event().wait(STOP_S)
        daemon.process.send_signal(signal.SIGCONT)
        stopped_s = time.monotonic() - begun
        load(hammer, 0.0)
        assert STOP_S <= hammer.longest_s < stopped_s + PATIENCE_S
        hammer.expect(Expect.ANYTHING)
        daemon.process.send_signal(signal.SIGSTOP)
        until(lambda: all(slot.begun_ns for slot in hammer.slots), "all wait for an answer")
        daemon.end(signal.SIGKILL)
        let_go(hammer)


def test_a_guard_that_is_not_answered_yet_dies_with_the_daemon(tree: Tree, hammer: Hammer) -> None:
    """SIGKILL while guards are made: all that was marked is let go."""
    chance = random.Random(1)
    for _ in range(max(2, KILLS // 5)):
        with GuardingDaemon() as daemon:
            request = daemon.guard_request(tree.denied, tree.allowed, audit=True)
            calls = [daemon.guards.CreateGuard.future(request, timeout=CALL_S)]
            tree.watch(daemon)
            threading.Event().wait(chance.random() / 100)
            daemon.end(signal.SIGKILL)
            let_go(hammer)
            for call in calls:
                assert call.code() in {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
    assert hammer.longest_s < PATIENCE_S


@pytest.mark.parametrize(
    ("how", "times"), [(signal.SIGKILL, KILLS), (signal.SIGABRT, max(1, KILLS // 10)), (signal.SIGTERM, 1)]
)
def test_nothing_is_stuck_after(
    how: signal.Signals, times: int, tree: Tree, hammer: Hammer, capsys: pytest.CaptureFixture[str]
) -> None:
    """One process guards and watches the same files; now and then another one watches them, too, and lives on.

    A process that waits holds up only one of those who watch the file.
    """
    chance = random.Random(2)
    took_s = []
    for number in range(times):
        with contextlib.ExitStack() as others, GuardingDaemon() as daemon:
            tree.watch(daemon)
            if number % 4 == 3:
                tree.watch(others.enter_context(GuardingDaemon(services="argus")))
            tree.guard(daemon)
            load(hammer, chance.random() / 5)
            hammer.expect(Expect.ANYTHING)
            took_s.append(daemon.end(how))
            let_go(hammer)
    assert hammer.longest_s < PATIENCE_S
    with capsys.disabled():
        longest_ms = f"the longest took {max(took_s) * 1e3:.0f} ms, the longest open {hammer.longest_s * 1e3:.0f} ms"
        print(f"\n{how.name}: {times} deaths, {longest_ms}, {hammer.opens} opens, nobody is stuck")
