"""What the daemon's log says has happened to files."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Final

__all__ = ["told"]

QUIET_S: Final = 1.0
POLL_S: Final = 0.01


def told(log: Path, event: str, count: int) -> Counter[tuple[str, str]]:
    """How often the JSON lines tell of an event, by pod and path.

    Waits until there are ``count`` of them altogether, or there come no more.
    """
    found: Counter[tuple[str, str]] = Counter()
    deadline, rest = time.monotonic() + QUIET_S, b""
    with log.open("rb") as file:
        while time.monotonic() < deadline and found.total() < count:
            data = file.read()
            if not data:
                time.sleep(POLL_S)
                continue
            *lines, rest = (rest + data).split(b"\n")
            deadline = time.monotonic() + QUIET_S
            for record in map(json.loads, lines):
                if record.get("event") == event:
                    found[record["pod"], f"{record['path']}/{record['file']}"] += 1
    return found
