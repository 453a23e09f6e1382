"""One daemon process: what it is made of, the order in which that starts, and its orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import threading
from typing import Final

import grpc
import uvloop

from argusd import __version__, logs, privileges, tls
from argusd._inotify import COUNTED, Engine, Notice
from argusd._output import Output
from argusd.arming import WATCH_LIMIT, Arming, sysctl
from argusd.flags import Settings
from argusd.metrics import Metrics
from argusd.processes import pidfds_work
from argusd.registry import Registry
from argusd.server import AddressError, Server
from argusd.watches import WatchService

__all__ = ["StartError", "run"]

logger = logging.getLogger("argusd.daemon")

# How often the engine's counts are taken over: often enough for a reader of metrics, seldom enough to batch.
_DRAIN_EVERY_S: Final = 0.005

# The end, within 5 s altogether.
_SETTLE_S: Final = 0.5
_DRAIN_S: Final = 0.5  # what the kernel has queued
_STREAMS_S: Final = 2.0  # what clients have still to be sent
_OUTPUT_S: Final = 0.75  # what the log has still to be written
_STOP_S: Final = 4.5

_WAYS: Final = {
    "openat2": "container paths are looked up with openat2(RESOLVE_IN_ROOT)",
    "setns": "container paths are looked up by a thread that enters the container with setns",
}


class StartError(Exception):
    """The daemon cannot start; ``str()`` is the message for the operator."""


def run(settings: Settings) -> int:
    """Serve until a signal ends it; returns the exit code. Raises StartError."""
    try:
        credentials = _credentials(settings)
    except tls.TlsError as error:
        raise StartError(str(error)) from error
    output = Output()
    logs.start(output, settings.log, settings.log_dir, settings.v)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_Daemon(settings, output).serve(credentials))
    finally:
        output.close(_OUTPUT_S)
    return 0


def _credentials(settings: Settings) -> grpc.ServerCredentials | None:
    if not settings.tls:
        return None
    return tls.credentials(settings.tlscafile, settings.tlscertfile, settings.tlskeyfile)


class _Daemon:
    def __init__(self, settings: Settings, output: Output) -> None:
        self._settings = settings
        self._output = output

    async def serve(self, credentials: grpc.ServerCredentials | None) -> None:
        """Start, wait for a signal, stop."""
        stop = self._catch_signals()
        engine = self._engine()
        try:
            await self._serve(engine, credentials, stop)
        finally:
            engine.close()

    async def _serve(self, engine: Engine, credentials: grpc.ServerCredentials | None, stop: asyncio.Event) -> None:
        metrics, arming = Metrics(engine, COUNTED), Arming(engine)
        service = WatchService(Registry(arming, metrics), metrics)
        server = Server([service.service()], with_reflection=self._settings.reflection)
        try:
            address = await server.start(self._settings.address, credentials)
        except AddressError as error:
            raise StartError(str(error)) from error
        pump = _Pump(engine, metrics, arming)
        self._say_hello(address, engine.enter, secure=credentials is not None)
        await stop.wait()
        await self._stop(engine, server, metrics, pump, arming)

    def _engine(self) -> Engine:
        try:
            engine = Engine(self._output, self._settings.enter)
        except OSError as error:
            if error.errno in {errno.ENOSYS, errno.EPERM}:
                raise StartError(f"-enter={self._settings.enter}: {error.strerror}; use -enter=setns") from error
            limit = "fs.inotify.max_user_instances"
            raise StartError(f"No inotify instance: {error.strerror} ({limit} is {sysctl(limit)})") from error
        engine.start()
        return engine

    def _say_hello(self, address: str, enter: str, *, secure: bool) -> None:
        settings = self._settings
        if not secure and (settings.tlscafile or settings.tlscertfile or settings.tlskeyfile):
            logger.warning("TLS files are given without -tls: serving plaintext, clients are not verified")
        if not pidfds_work():
            logger.warning(
                "pidfd_open(2) is refused (it needs Linux 5.3 and a seccomp profile that knows it): "
                "the daemon looks for the end of containers 20 times a second"
            )
        if lacking := privileges.warning(enter, privileges.held()):
            logger.warning("%s", lacking)
        why = " (openat2 is missing)" if settings.enter == "auto" and enter == "setns" else ""
        logger.info("argusd %s; %s%s", __version__, _WAYS[enter], why)
        logger.info("Server listening on %s", address)

    def _catch_signals(self) -> asyncio.Event:
        stop = asyncio.Event()

        def on_signal(number: int) -> None:
            if stop.is_set():
                return  # a terminal, systemd and the launchers of the one-file binary may each send the same signal
            logger.info("%s: stopping", signal.Signals(number).name)
            # Whatever hangs from here on, the process ends in time: a stuck terminal, or a walker thread in a dead
            # network file system, which the interpreter would join for ever at its own end.
            watchdog = threading.Timer(_STOP_S, os._exit, (0,))
            watchdog.daemon = True
            watchdog.start()
            stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, on_signal, number)
        return stop

    async def _stop(self, engine: Engine, server: Server, metrics: Metrics, pump: _Pump, arming: Arming) -> None:
        """Refuse new calls, report what the kernel has queued, let streams send what is pending, write it all out."""
        stopping = asyncio.create_task(server.stop(_STREAMS_S))
        await asyncio.sleep(0)
        arming.close()
        await self._settle(engine)
        pump.close()
        metrics.drain()
        await asyncio.get_running_loop().run_in_executor(None, engine.close, _DRAIN_S)
        metrics.finish()
        await stopping
        logger.info("Stopped")
        await asyncio.get_running_loop().run_in_executor(None, self._output.close, _OUTPUT_S)

    async def _settle(self, engine: Engine) -> None:
        """Wait until what has happened so far is reported, so that it is counted too while streams can be sent it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SETTLE_S):
                while not engine.settled():  # noqa: ASYNC110  (the reader does not tell)
                    await asyncio.sleep(_DRAIN_EVERY_S)


class _Pump:
    """Moves counts and notices from the engine to the metrics and the log, batch by batch."""

    def __init__(self, engine: Engine, metrics: Metrics, arming: Arming) -> None:
        self._engine = engine
        self._metrics = metrics
        self._arming = arming
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._listen()

    def close(self) -> None:
        """Leave the engine alone."""
        self._loop.remove_reader(self._engine.fileno())
        if self._timer is not None:
            self._timer.cancel()

    def _listen(self) -> None:
        self._timer = None
        self._loop.add_reader(self._engine.fileno(), self._on_ready)

    def _on_ready(self) -> None:
        self._engine.acknowledge()
        if self._metrics.active:
            self._metrics.drain()
        for notice in self._engine.notices():
            self._warn(notice)
        # Counts pile up in the engine at no cost; the next look waits a little, so that each brings many.
        self._loop.remove_reader(self._engine.fileno())
        self._timer = self._loop.call_later(_DRAIN_EVERY_S, self._listen)

    def _warn(self, notice: Notice) -> None:
        owner = self._arming.owner(notice.subscription) or ""
        match notice.kind:
            case "overflow":
                limit = "fs.inotify.max_queued_events"
                logger.warning("The kernel's event queue overflowed, events were lost (%s is %s)", limit, sysctl(limit))
            case "limit":
                reason = os.strerror(notice.errno)
                if notice.errno == errno.ENOSPC:
                    reason = f"no inotify watches left ({WATCH_LIMIT} is {sysctl(WATCH_LIMIT)})"
                elif notice.errno == errno.EACCES:
                    lacking = privileges.missing([privileges.DAC_READ_SEARCH], privileges.held())
                    reason += f" (the daemon lacks {lacking[0]})" if lacking else ""
                logger.warning("'%s' cannot be watched %s: %s", notice.path, owner, reason)
            case "depth":
                logger.warning(
                    "'%s' is deeper than %d directories and not watched %s", notice.path, notice.number, owner
                )
            case "beyond":
                reason = "its path is longer than any that can be used, so it is reported under the one it had"
                logger.warning("'%s' was moved %s: %s", notice.path, owner, reason)
            case "mounts":
                logger.warning(
                    "/proc/PID/mountinfo has more than %d bytes, so mounts that come and go are not noticed %s",
                    notice.number,
                    owner,
                )
            case _:
                logger.warning("Engine notice %s", notice)
