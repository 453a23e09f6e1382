"""Waiting for what another thread or process does."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Final

TIMEOUT_S: Final = 20.0
STEP_S: Final = 0.005
LOOP_TIMEOUT_S: Final = 10.0


def until(condition: Callable[[], object], what: str, timeout_s: float = TIMEOUT_S) -> None:
    """Wait for ``condition`` as long as a slow machine may take; a failure says ``what`` never came."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        threading.Event().wait(STEP_S)


async def until_in_loop(condition: Callable[[], bool]) -> None:
    """Let the event loop run until something is so."""
    async with asyncio.timeout(LOOP_TIMEOUT_S):
        while not condition():  # noqa: ASYNC110  (there is no event to wait for)
            await asyncio.sleep(0.001)
