"""The daemon with a few watches and nothing to do, for a minute: CPU and memory of all its processes."""

from __future__ import annotations

import time
from typing import Final

from benchmarks.daemon import MeasuredDaemon
from benchmarks.table import NO_GOAL, Comparison
from benchmarks.trees import grown_tree, temporary_folder

IDLE_S: Final = 60.0
SETTLE_S: Final = 2.0
DIRECTORIES: Final = 20
ALLOWED_MB: Final = 45.0


def measure() -> list[Comparison]:
    """Measure; takes 65 seconds."""
    with temporary_folder() as folder, MeasuredDaemon(folder) as daemon:
        tree = folder / "tree"
        grown_tree(tree, DIRECTORIES)
        daemon.watch(tree, ["all"])
        (tree / "new").touch()
        time.sleep(SETTLE_S)
        before_s = daemon.cpu_s()
        time.sleep(IDLE_S)
        used_ms = (daemon.cpu_s() - before_s) * 1e3
        memory = daemon.memory()
    allowed = [ALLOWED_MB]
    return [
        Comparison("CPU while idle", "ms", "argusd", "time", [used_ms], [IDLE_S * 1e3], 0.0),
        Comparison("PSS of all processes", "MB", "argusd", "allowed", [memory.proportional / 1e6], allowed, 1.0),
        Comparison("  RSS", "MB", "argusd", "allowed", [memory.resident / 1e6], allowed, NO_GOAL),
        Comparison("  private", "MB", "argusd", "allowed", [memory.anonymous / 1e6], allowed, NO_GOAL),
    ]
