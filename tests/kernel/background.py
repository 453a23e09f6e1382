"""What goes on meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Self


class Background:
    """Does something again and again in a thread of its own, for as long as it is entered, and counts how often."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._act = act
        self._stop = threading.Event()
        self.rounds = 0
        self._thread = threading.Thread(target=self._run, name="background")

    def _run(self) -> None:
        while not self._stop.is_set():
            self._act()
            self.rounds += 1

    @property
    def is_at_work(self) -> bool:
        """False when it has failed; pytest tells then."""
        return self._thread.is_alive()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
