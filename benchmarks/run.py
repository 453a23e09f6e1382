"""`make bench`: run from anywhere, with the project's Python. Names of benchmarks as arguments run only those.

A goal that is missed is a result; a benchmark that breaks is an error, and the others are run all the same.
"""

from __future__ import annotations

import importlib
import os
import platform
import sys
import time
import traceback
from pathlib import Path
from typing import Final

# As a script this file's own folder is what Python searches; the packages are one level up.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

BENCHMARKS: Final = (
    "events",
    "metrics",
    "setup",
    "mkdir",
    "storm",
    "burst",
    "containers",
    "updates",
    "idle",
    "resolve",
    "guard",
)
QUEUE: Final = "/proc/sys/fs/inotify/max_queued_events"


def main(names: list[str]) -> int:
    """Run benchmarks and print one table; 2 for a name that is none, 1 when one broke."""
    if unknown := sorted(set(names) - set(BENCHMARKS)):
        print(f"no such benchmark: {', '.join(unknown)}; there are: {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    table = importlib.import_module("benchmarks.table")
    sections, broken = {}, []
    for name in names or BENCHMARKS:
        module = importlib.import_module(f"benchmarks.{name}")
        title, *_ = (module.__doc__ or name).splitlines()
        print(f"running {name}", end="", flush=True)
        start_s = time.monotonic()
        try:
            sections[f"{name}: {title}"] = module.measure()
        except Exception:  # noqa: BLE001  (the others still have something to say)
            traceback.print_exc()
            broken.append(name)
        print(f", {time.monotonic() - start_s:.0f} s", flush=True)
    print(
        f"\nLinux {platform.release()}, {os.cpu_count()} cores, queue of {Path(QUEUE).read_text().strip()} events.",
        end=" ",
    )
    print("Medians (lowest..highest; of ten rounds and more the middle half).")
    print(table.render(sections))
    print(table.verdicts(row for rows in sections.values() for row in rows))
    if broken:
        print(f"broken: {', '.join(broken)}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
