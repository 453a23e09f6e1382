"""Tells when containers end: from their pidfds, or by looking where the kernel has none."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from argusd.containers import Container

__all__ = ["Ends"]

logger = logging.getLogger("argusd.ends")

_LOOK_EVERY_S: Final = 0.05


class Ends:
    """Calls back on the event loop when a container has ended that was added, until it is removed."""

    def __init__(self) -> None:
        """Must be made inside the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._looked_at: dict[int, tuple[Container, Callable[[], None]]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, container: Container, ended: Callable[[], None]) -> None:
        """Call ``ended``, which must remove the container, when its process has ended."""
        if container.tells:
            self._loop.add_reader(container.pidfd, ended)
            return
        self._looked_at[container.pidfd] = container, ended
        if self._timer is None:
            self._timer = self._loop.call_later(_LOOK_EVERY_S, self._look)

    def remove(self, container: Container) -> None:
        """Forget a container; it must be open still."""
        if self._looked_at.pop(container.pidfd, None) is None:
            self._loop.remove_reader(container.pidfd)

    def _look(self) -> None:
        for entry in list(self._looked_at.values()):
            container, ended = entry
            if self._looked_at.get(container.pidfd) is not entry:
                continue  # removed by one of the calls
            try:
                alive = container.alive()
            except OSError as error:  # no descriptor left to look with
                logger.warning("Cannot look whether process %d still runs: %s", container.pid, error.strerror)
                break
            if not alive:
                ended()
        self._timer = self._loop.call_later(_LOOK_EVERY_S, self._look) if self._looked_at else None
