"""An engine that watches what this process sees."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from argusd._inotify import COUNTED, EVENTS, Engine
from argusd._output import Output
from argusd._records import Encoder
from argusd.templates import DEFAULT_WATCH_TEMPLATE
from tests.waiting import TIMEOUT_S, until

ALL: Final = sum(EVENTS.values())


class Watching:
    """An engine that watches as this process sees the files, with its lines in a file."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.output = Output()
        self.output.add_file(str(log), 1 << 30, 0)
        self.engine = Engine(self.output)
        self.engine.start()
        self.counter = self.engine.new_counter()

    def subscribe(self, *folders: Path, mask: int = ALL) -> int:
        """Register a recursive watch, not armed yet."""
        pidfd = os.pidfd_open(os.getpid())
        try:
            return self.engine.subscribe(
                Encoder(DEFAULT_WATCH_TEMPLATE.segments, "p", "n", "w", "c", []),
                self.counter, os.getpid(), pidfd, list(map(os.fsencode, folders)), mask, [], False, True, 0, False,
            )  # fmt: skip
        finally:
            os.close(pidfd)

    def watch(self, folder: Path, mask: int = ALL) -> int:
        """Watch from now on."""
        number = self.subscribe(folder, mask=mask)
        assert self.engine.arm(number).errors == (0,)
        self.engine.switch([number], [])
        return number

    def counts(self) -> dict[str, int]:
        """What was counted since the last call."""
        return {COUNTED[kind]: count for counter, kind, count in self.engine.drain_counts() if counter == self.counter}

    def settle(self) -> None:
        """Wait until nothing is left to be done for what the reader has seen."""
        until(self.engine.settled, "the engine comes to rest")

    def expect(self, lines: int) -> None:
        """Wait for so many lines in the log, and for no more."""
        until(lambda: self.log.read_bytes().count(b"\n") >= lines, f"{lines} lines")
        self.settle()
        assert self.output.flush(TIMEOUT_S)
        found = self.log.read_bytes().count(b"\n")
        assert found == lines, f"{found} lines, not {lines}"

    def close(self) -> None:
        """Stop in the order of the daemon."""
        self.engine.close()
        assert self.output.close(TIMEOUT_S)
