"""`make bench`: run from anywhere, with the project's Python. Names of benchmarks as arguments run only those."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Final

# As a script this file's own folder is what Python searches; the packages are one level up.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

BENCHMARKS: Final = ("mkdir", "resolve", "guard")


def main(names: list[str]) -> int:
    """Run benchmarks and print a table of each; the exit code is 2 for a name that is none."""
    if unknown := sorted(set(names) - set(BENCHMARKS)):
        print(f"no such benchmark: {', '.join(unknown)}; there are: {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    table = importlib.import_module("benchmarks.table")
    for name in names or BENCHMARKS:
        module = importlib.import_module(f"benchmarks.{name}")
        title, *_ = (module.__doc__ or name).splitlines()
        print(f"{name}: {title}", flush=True)
        print(table.render(module.measure()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
