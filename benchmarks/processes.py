"""What a process and all below it take, as the kernel accounts for it."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Memory", "cpu_s", "memory", "thread_count", "tree"]


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a process tree (/proc/PID/smaps_rollup)."""

    proportional: int
    """PSS: a page that n processes share counts as 1/n of a page."""
    resident: int
    anonymous: int
    """Private: heaps, stacks and written copies, but no page that is in a file as well."""


def tree(pid: int) -> list[int]:
    """The process and all its descendants: a launcher's work is done by its children."""
    found = [pid]
    for parent in found:  # grows on the way
        for task in Path(f"/proc/{parent}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


def cpu_s(pid: int) -> float:
    """Seconds that all threads of the tree have run, to the nanosecond, and its processes that have ended, to 10 ms.

    CLOCK_PROCESS_CPUTIME_ID of another process, as clock_getcpuclockid(3) makes it from the pid; proc_pid_stat(5).
    """
    return sum(time.clock_gettime((~process << 3) | 2) + _ended_s(process) for process in tree(pid))


def _ended_s(pid: int) -> float:
    """What the children of a process have run that have ended and were waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> Memory:
    """What the tree holds now."""
    sums = dict.fromkeys(("Pss", "Rss", "Anonymous"), 0)
    for process in tree(pid):
        if Path(f"/proc/{process}/comm").read_text().startswith("argusd-"):
            continue  # it shares the daemon's memory, which is counted there
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in sums:
                sums[name] += int(value.split()[0]) * 1024
    return Memory(proportional=sums["Pss"], resident=sums["Rss"], anonymous=sums["Anonymous"])


def thread_count(pid: int) -> int:
    """Threads in the tree."""
    return sum(len(list(Path(f"/proc/{process}/task").iterdir())) for process in tree(pid))
