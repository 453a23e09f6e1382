"""Which of many lines that say the same are written: the first, and then one a while that counts the others."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

__all__ = ["Repeats"]

_AGAIN_S: Final = 60.0
_MOST_KEYS: Final = 256
_BURST: Final = 20  # different lines at once, whoever has them written
_EACH_S: Final = 1.0  # and one more after so long


class Repeats:
    """Limits what clients and files can have written into the log. What is left out is counted in a later line."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock`` gives seconds."""
        self._clock = clock
        self._seen: dict[str, tuple[float, int]] = {}
        self._budget = float(_BURST)
        self._filled_at = clock()
        self._silenced = 0

    def admit(self, key: str) -> str | None:
        """Return what to write behind a line, empty in most cases; None when the line is left out.

        Lines with the same ``key`` say the same.
        """
        now = self._clock()
        self._budget = min(_BURST, self._budget + (now - self._filled_at) / _EACH_S)
        self._filled_at = now
        written_at, times = self._seen.get(key, (now - _AGAIN_S, 0))
        if now - written_at < _AGAIN_S:
            self._seen[key] = written_at, times + 1
            return None
        if self._budget < 1:
            self._silenced += 1
            return None
        self._budget -= 1
        self._seen.pop(key, None)
        while len(self._seen) >= _MOST_KEYS:
            self._seen.pop(next(iter(self._seen)))
        self._seen[key] = now, 0
        suffix = f" (and {times} times more since the last such line)" if times else ""
        if self._silenced:
            suffix += f" ({self._silenced} other such lines were left out)"
            self._silenced = 0
        return suffix
