"""When a program has nothing more to do, told from the CPU that it uses: to ask it anything would give it work."""

from __future__ import annotations

import time
from typing import Final

from benchmarks import processes

__all__ = ["last_work_s"]

POLL_S: Final = 0.002
BUSY: Final = 0.25
"""Of the time between two looks. A timer that goes off in an idle program takes less."""


def last_work_s(pid: int, quiet_s: float) -> float:
    """Wait until a process tree has been quiet for so long; returns when it was last busy (time.perf_counter)."""
    used_s, last_s = processes.cpu_s(pid), time.perf_counter()
    before_s = last_s
    while before_s - last_s < quiet_s:
        time.sleep(POLL_S)
        now_used_s, now_s = processes.cpu_s(pid), time.perf_counter()
        if now_used_s - used_s > BUSY * (now_s - before_s):
            last_s = now_s
        used_s, before_s = now_used_s, now_s
    return last_s
