"""What each signal means to the daemon. None but SIGTERM and SIGINT ends it in order, and no other one by accident."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Signals"]

logger = logging.getLogger("argusd.signals")

_END: Final = (signal.SIGTERM, signal.SIGINT)
# By default these would end the process, and open what it guards. SIGQUIT stays: whoever sends it wants a core file.
_IGNORED: Final = (
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGVTALRM,
    signal.SIGPROF,
    signal.SIGIO,
    signal.SIGPWR,
)


class Signals:
    """The signal handlers of the process; :attr:`stop` is set by the first signal that ends it."""

    def __init__(self, on_hangup: Sequence[Callable[[], None]], end_within_s: float) -> None:
        """Handle signals from now on; must be made inside the running event loop.

        ``on_hangup`` is called in order at SIGHUP. After the signal to end, the process is gone in ``end_within_s``
        whatever hangs.
        """
        self.stop: Final = asyncio.Event()
        self._on_hangup = tuple(on_hangup)
        self._end_within_s = end_within_s
        self._parent = os.getppid()
        loop = asyncio.get_running_loop()
        for number in _END:
            loop.add_signal_handler(number, self._end, number)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        for number in _IGNORED:
            loop.add_signal_handler(number, self._ignore, number)

    def _end(self, number: signal.Signals) -> None:
        if self.stop.is_set():
            return  # a terminal, systemd and the launchers of the one-file binary may each send the same signal
        if os.getppid() == self._parent:
            logger.info("%s: stopping", number.name)
        else:  # the launcher of the one-file binary was killed, and nobody sent the daemon anything
            logger.info("The process that started the daemon, with pid %d, has ended: stopping", self._parent)
        # Whatever hangs from here on, the process ends in time: a stuck terminal, or a walker thread in a dead
        # network file system, which the interpreter would join for ever at its own end.
        watchdog = threading.Timer(self._end_within_s, os._exit, (0,))
        watchdog.daemon = True
        watchdog.start()
        self.stop.set()

    def _hang_up(self) -> None:
        logger.info("SIGHUP: opening the log file anew")
        for call in self._on_hangup:
            call()

    def _ignore(self, number: signal.Signals) -> None:
        logger.info("%s is ignored; SIGTERM ends the daemon, SIGHUP opens its log file anew", number.name)
