"""What the demo prints: headings, the daemon's lines, a table. Colour on a terminal only."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from typing import Final

PLAIN: Final = "0"
BOLD: Final = "1"
DIM: Final = "2"
RED: Final = "31"
GREEN: Final = "32"
BLUE: Final = "36"


class Terminal:
    """Whole lines on stdout, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._colour = sys.stdout.isatty()

    def heading(self, text: str) -> None:
        """A step of the story."""
        self._print(f"\n▸ {text}", BOLD)

    def detail(self, text: str) -> None:
        """What a step did."""
        self._print(f"  {text}", PLAIN)

    def command(self, text: str, where: str = "container") -> None:
        """A command that runs in the container, or elsewhere."""
        self._print(f"\n  {where}$ {text}", BLUE)

    def output(self, text: str) -> None:
        """What a command said."""
        self._print("\n".join(f"    {line}" for line in text.splitlines()), PLAIN)

    def log(self, line: str) -> None:
        """A line of the daemon's log."""
        self._print(f"    log      {line}", PLAIN)

    def metric(self, watcher: str, event: str, count: int) -> None:
        """A message of the metrics stream, with the count so far."""
        self._print(f"    metric   {watcher} {event} = {count}", DIM)

    def good(self, text: str) -> None:
        """Something that was checked and holds."""
        self._print(f"  ✔ {text}", GREEN)

    def bad(self, text: str) -> None:
        """Something that was checked and does not hold."""
        self._print(f"  ✘ {text}", RED)

    def table(self, logged: Counter[str], counted: Counter[str]) -> None:
        """Events by name: lines in the log beside messages of the metrics stream."""
        self._print(f"  {'event':<16}{'log lines':>10}{'metrics':>10}", BOLD)
        for event in sorted(logged | counted):
            same = logged[event] == counted[event]
            self._print(f"  {event:<16}{logged[event]:>10}{counted[event]:>10}", PLAIN if same else RED)
        self._print(f"  {'all':<16}{logged.total():>10}{counted.total():>10}", BOLD)

    def _print(self, text: str, colour: str) -> None:
        with self._lock:
            print(f"\x1b[{colour}m{text}\x1b[0m" if self._colour and colour != PLAIN else text, flush=True)
