"""Moves counts and notices from the native engine to the metrics and the log, batch by batch."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from argusd import privileges
from argusd.refusals import MARK_LIMIT, sysctl, watch_limit

if TYPE_CHECKING:
    from argusd._fanotify import Guards
    from argusd._inotify import Engine, Notice
    from argusd.arming import Arming
    from argusd.metrics import Metrics

__all__ = ["DRAIN_EVERY_S", "Pump"]

logger = logging.getLogger("argusd.pump")

# How often the engine's counts are taken over: often enough for a reader of metrics, seldom enough to batch.
DRAIN_EVERY_S: Final = 0.005
# How often guards are asked what they have to say; they do not tell of it.
_ASK_EVERY_S: Final = 5.0


class Pump:
    """Owns the engine's place in the event loop."""

    def __init__(
        self, engine: Engine, metrics: Metrics | None, armings: Sequence[Arming[Any]], guards: Guards | None
    ) -> None:
        """``armings`` know whose subscription a notice is about. Must be made inside the running event loop."""
        self._engine = engine
        self._metrics = metrics
        self._armings = armings
        self._guards = guards
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._asking: asyncio.TimerHandle | None = None
        self._listen()
        if guards is not None:
            self._ask()

    def close(self) -> None:
        """Leave the engine alone."""
        self._loop.remove_reader(self._engine.fileno())
        for timer in (self._timer, self._asking):
            if timer is not None:
                timer.cancel()

    def tell(self) -> None:
        """Log the notices that wait."""
        for notice in self._engine.notices():
            self._warn(notice)
        if self._guards is not None:
            for kind, number in self._guards.notices():
                _warn_of_guards(kind, number)

    def _listen(self) -> None:
        self._timer = None
        self._loop.add_reader(self._engine.fileno(), self._on_ready)

    def _ask(self) -> None:
        self.tell()
        self._asking = self._loop.call_later(_ASK_EVERY_S, self._ask)

    def _on_ready(self) -> None:
        self._engine.acknowledge()
        if self._metrics is not None and self._metrics.active:
            self._metrics.drain()
        self.tell()
        # Counts pile up in the engine at no cost; the next look waits a little, so that each brings many.
        self._loop.remove_reader(self._engine.fileno())
        self._timer = self._loop.call_later(DRAIN_EVERY_S, self._listen)

    def _warn(self, notice: Notice) -> None:
        owner: object = ""
        done = "watched"
        for arming in self._armings:
            if key := arming.owner(notice.subscription):
                owner, done = key, arming.kind.done
        match notice.kind:
            case "overflow":
                logger.warning(
                    "The kernel's event queue overflowed, events were lost (it holds %d; see -max_queued_events)",
                    self._engine.queue[0],
                )
            case "limit":
                logger.warning("'%s' cannot be %s %s: %s", notice.path, done, owner, _limit(notice.errno))
            case "unguarded":
                logger.error(
                    "'%s' has come to stand for what cannot be guarded, and is open %s: %s",
                    notice.path,
                    owner,
                    _guard_limit(notice.errno),
                )
            case "share" | "watched" | "dropped" | "forgotten" | "mounts":
                _warn_of_shortage(notice, owner)
            case "foreign" | "root":
                _warn_of_roots(notice, done, owner)
            case "depth":
                logger.warning(
                    "'%s' is deeper than %d directories and not %s %s", notice.path, notice.number, done, owner
                )
            case "beyond":
                reason = "its path is longer than any that can be used, so it is reported under the one it had"
                logger.warning("'%s' was moved %s: %s", notice.path, owner, reason)
            case _:
                logger.warning("Engine notice %s", notice)


def _warn_of_shortage(notice: Notice, owner: object) -> None:
    match notice.kind:
        case "share":
            logger.warning(
                "'%s' and what else is new cannot be watched %s: the container has %d watches, its share "
                "(-watch_share) of %s (%s); it is tried again when others are given back",
                notice.path,
                owner,
                notice.number,
                *watch_limit(),
            )
        case "watched":
            logger.info("All is watched again %s: %d directories had waited", owner, notice.number)
        case "dropped":
            logger.warning("%d more warnings of the engine came at once than are kept", notice.number)
        case "mounts":
            logger.warning(
                "/proc/PID/mountinfo has more than %d bytes, so mounts that come and go are not noticed %s",
                notice.number,
                owner,
            )
        case "forgotten":
            logger.error(
                "No memory to remember what is to be looked at (%d times): all directories are listed again",
                notice.number,
            )


def _warn_of_roots(notice: Notice, done: str, owner: object) -> None:
    """Say that something is not, or is no longer, the container's."""
    if notice.kind == "foreign":
        logger.warning(
            "'%s' leads, by a link, to files of the node that the container may only read: not guarded, for the node "
            "would be refused its own files %s",
            notice.path,
            owner,
        )
        return
    logger.warning(
        "Process 1 of a container (here %d) has left the root that it had: what is %s stays as it was, in that root %s",
        notice.number,
        done,
        owner,
    )


def _limit(code: int) -> str:
    """Why a path cannot be watched."""
    if code == errno.ENOSPC:
        name, value = watch_limit()
        return f"no inotify watches left ({name} is {value}); it is tried again until there are"
    if code == errno.EACCES and (lacking := privileges.missing([privileges.DAC_READ_SEARCH], privileges.held())):
        return f"{os.strerror(code)} (the daemon lacks {lacking[0]})"
    return os.strerror(code)


def _guard_limit(code: int) -> str:
    """Why a path cannot be guarded."""
    if code == errno.ENOSPC:
        return f"no fanotify marks left ({MARK_LIMIT} is {sysctl(MARK_LIMIT)})"
    if code == errno.ENXIO:
        return "it is a device, a pipe or a socket, and the kernel asks nobody before these are opened"
    return os.strerror(code)


def _warn_of_guards(kind: str, number: int) -> None:
    match kind:
        case "dropped":
            logger.warning("%d answers of guards are not in the log: they came faster than it could be written", number)
        case "failed":
            logger.warning(
                "%d times the kernel could not open a guarded file for the daemon to be asked about it, and denied it",
                number,
            )
        case "broken":
            logger.error(
                "The kernel's permission events are not understood: %d of the groups is closed, and what it guarded is "
                "open to everybody; guard again with another version of the daemon",
                number,
            )
        case _:
            logger.warning("Guard notice %s: %d", kind, number)
