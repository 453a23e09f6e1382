"""The daemon, with a thread that never gives Python's lock away by itself: ``python -m benchmarks.busy_daemon …``."""

from __future__ import annotations

import sys
import threading

from argusd.__main__ import main


def spin() -> None:
    """Keep the lock for as long as the interpreter lets a thread have it."""
    while True:
        pass


if __name__ == "__main__":
    threading.Thread(target=spin, daemon=True).start()
    sys.exit(main())
