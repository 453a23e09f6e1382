"""What systemd is told of a service of Type=notify: ready, alive, stopping (sd_notify(3), systemd.service(5)).

The one-file binary runs the daemon as a grandchild of the process that systemd started, so its unit needs
NotifyAccess=all, and WATCHDOG_PID, which names that process, is not compared with ours.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from typing import Final

__all__ = ["Notifier"]

logger = logging.getLogger("argusd.notify")

_SHARE: Final = 3  # signs of life in the time within which systemd wants one


class Notifier:
    """Tells systemd, or nobody where no systemd listens. Make it, and use it, inside the running event loop.

    A sign of life comes from the event loop: when that stands still, systemd restarts the service.
    """

    def __init__(self) -> None:
        """Read where to from the environment, and take it out: what the daemon starts must not speak for it."""
        self._address = os.environ.pop("NOTIFY_SOCKET", "").replace("@", "\0", 1)
        self._interval_s = _interval_s(os.environ.pop("WATCHDOG_USEC", "")) / _SHARE
        self._timer: asyncio.TimerHandle | None = None

    def ready(self) -> None:
        """Calls are served from now on."""
        self._send("READY=1")
        if self._address and self._interval_s:
            self._sign_of_life()

    def stopping(self) -> None:
        """The orderly end has begun."""
        if self._timer is not None:
            self._timer.cancel()
        self._send("STOPPING=1")

    def _sign_of_life(self) -> None:
        self._send("WATCHDOG=1")
        self._timer = asyncio.get_running_loop().call_later(self._interval_s, self._sign_of_life)

    def _send(self, state: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
                sender.sendto(state.encode(), self._address)
        except OSError as error:
            logger.warning("Cannot tell systemd %s at %r: %s", state, self._address, error.strerror)


def _interval_s(microseconds: str) -> float:
    try:
        return int(microseconds) / 1_000_000
    except ValueError:
        return 0.0
