"""The daemon's lines, operation by operation: a sentinel tells when everything is out that an operation caused.

The daemon reports what happens in the order in which it happens. So something done in a sentinel's own container after
an operation is reported after everything that the operation caused: once its line is out, all lines are out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.conformance.scenarios import normalise, strip_prefix
from tests.daemon import Daemon
from tests.waiting import until

SENTINEL: Final = "sentinel"
WAIT_S: Final = 5.0


class Lines(ABC):
    """What a daemon writes from now on; lines of the sentinel begin with :data:`SENTINEL` and a blank."""

    def __init__(self, daemon: Daemon) -> None:
        """The sentinel must be watched or guarded already."""
        self.daemon = daemon
        self._line = len(daemon.lines)

    @abstractmethod
    def _touch(self) -> str:
        """Have the sentinel seen; returns what its line will be, without the prefix."""

    def take_lines(self, at_least: int = 0) -> tuple[str, ...]:
        """Every line since the last call, apart from the sentinel's, when all that was caused so far is out.

        One thing can be out later than the sentinel: what the daemon found by listing a new directory is reported when
        it is sure that no event tells of it. So fewer lines than ``at_least`` are waited for.
        """
        start = self._line
        self._wait_for_sentinel()
        missing = at_least - len(self._lines_since(start))
        try:
            for _ in range(missing):
                self._line += 1 + self._index_of(lambda line: not self._is_sentinel(line))
            if missing > 0:
                self._wait_for_sentinel()
        except TimeoutError:
            self._line = len(self.daemon.lines)  # too few: the comparison that follows shows which
        until(self._walker_sleeps, "the walker comes to rest")
        return self._lines_since(start)

    def _walker_sleeps(self) -> bool:
        """Whether what was made is watched by now: the reader wakes the walker before a line of it is out."""
        return all(
            (task / "stat").read_text().rpartition(")")[2].split()[0] == "S"
            for task in Path(f"/proc/{self.daemon.pid}/task").iterdir()
            if (task / "comm").read_text() == "walker\n"
        )

    def _wait_for_sentinel(self) -> None:
        wanted = f"I {self._touch()}"
        self._line += 1 + self._index_of(lambda line: strip_prefix(line) == wanted)

    def _index_of(self, matches: Callable[[str], bool]) -> int:
        """Wait for a line; returns its place behind the last one that was looked at."""
        line = self.daemon.wait_for(matches, WAIT_S, after=self._line)
        return self.daemon.lines[self._line :].index(line)

    def _lines_since(self, start: int) -> tuple[str, ...]:
        lines = self.daemon.lines[start : self._line]
        return tuple(normalise(strip_prefix(line)) for line in lines if not self._is_sentinel(line))

    def _is_sentinel(self, line: str) -> bool:
        return strip_prefix(line).startswith(f"I {SENTINEL} ")
