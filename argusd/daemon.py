"""One daemon process: what it is made of, the order in which that starts, and its orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, Final

import grpc
import uvloop

from argusd import __version__, descriptors, event_queue, logs, surroundings, tls
from argusd._fanotify import Guards
from argusd._inotify import COUNTED, Engine
from argusd._output import Output
from argusd.arming import Arming
from argusd.discovery import Discovery
from argusd.flags import Settings
from argusd.guards import GuardService
from argusd.kinds import GuardKind, WatchKind
from argusd.marker import Marker, listing
from argusd.metrics import Metrics
from argusd.notify import Notifier
from argusd.pump import DRAIN_EVERY_S, Pump
from argusd.refusals import reason
from argusd.registry import Registry
from argusd.server import AddressError, Server, Service
from argusd.signals import Signals
from argusd.state import State
from argusd.watches import WatchService

__all__ = ["StartError", "run"]

logger = logging.getLogger("argusd.daemon")

# The end, within 5 s altogether.
_SETTLE_S: Final = 0.5
_DRAIN_S: Final = 0.5  # what the kernel has queued
_STREAMS_S: Final = 2.0  # what clients have still to be sent
_OUTPUT_S: Final = 0.75  # what the log has still to be written
_STOP_S: Final = 4.5

_DAY_S: Final = 24 * 60 * 60.0

_WAYS: Final = {
    "openat2": "container paths are looked up with openat2(RESOLVE_IN_ROOT)",
    "setns": "container paths are looked up by a thread that enters the container with setns",
}


class StartError(Exception):
    """The daemon cannot start; ``str()`` is the message for the operator."""


def run(settings: Settings) -> int:
    """Serve until a signal ends it; returns the exit code. Raises StartError."""
    if problem := surroundings.no_proc():
        raise StartError(problem)
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


class _Served:
    """The services that were asked for, on one engine, and what each of them is made of."""

    def __init__(self, settings: Settings, engine: Engine, output: Output) -> None:
        """Must be made inside the running event loop."""
        self.armings: list[Arming[Any]] = []
        self.services: list[Service] = []
        self.metrics: Metrics | None = None
        self.guards: Guards | None = None
        self.marker: Marker | None = None
        self.guarded: Callable[[], list[str]] = list
        self.discovery = Discovery()
        self.state = State(settings.state_dir, settings.services)
        if "argus" in settings.services:
            self._watch(engine)
        else:
            engine.want_counts(False)
        if "janus" in settings.services:
            self._guard(engine, output, settings.state_dir or settings.log_dir)

    def _watch(self, engine: Engine) -> None:
        self.metrics = Metrics(engine, COUNTED)
        arming = Arming(engine, WatchKind(engine, self.metrics))
        self.armings.append(arming)
        registry = Registry(arming, self.discovery)
        service = WatchService(registry, self.metrics)
        self.services.append(service.service())
        self.state.add("argus", registry, service.parse)

    def _guard(self, engine: Engine, output: Output, marker_dir: str) -> None:
        try:
            self.guards = Guards(output)
        except OSError as error:
            raise StartError(f"No guards: {reason(error)}") from error
        arming = Arming(engine, GuardKind(engine, self.guards))
        registry = Registry(arming, self.discovery)
        self.guarded = registry.armed
        self.marker = Marker(marker_dir, self.guarded)
        self.armings.append(arming)
        service = GuardService(registry, self.marker)
        self.services.append(service.service())
        self.state.add("janus", registry, service.parse)

    def close(self) -> None:
        """Take all guards away. Before the engine is closed: nothing must wait for an answer while that goes on."""
        if self.guards is not None:
            self.guards.close(_DRAIN_S)


class _Daemon:
    def __init__(self, settings: Settings, output: Output) -> None:
        self._settings = settings
        self._output = output

    async def serve(self, credentials: grpc.ServerCredentials | None) -> None:
        """Start, wait for a signal, stop."""
        stop = Signals([], _STOP_S).stop
        engine = self._engine()
        try:
            served = _Served(self._settings, engine, self._output)
            try:
                await self._serve(engine, served, credentials, stop)
            finally:
                served.close()
        finally:
            engine.close()

    async def _serve(
        self, engine: Engine, served: _Served, credentials: grpc.ServerCredentials | None, stop: asyncio.Event
    ) -> None:
        if served.marker is not None:
            await served.marker.look_back()  # before a call can write a new one
        await served.state.resume()
        if served.marker is not None:
            await served.marker.update()
        server = Server(served.services, descriptors.limit(), with_reflection=self._settings.reflection)
        try:
            address = await server.start(self._settings.address, credentials)
            probed = await server.start_health(at) if (at := self._settings.health_address) else ""
        except AddressError as error:
            raise StartError(str(error)) from error
        pump = Pump(engine, served.metrics, served.armings, served.guards)
        self._say_hello(address, engine.enter, secure=credentials is not None)
        if credentials is not None:
            self._check_certificate()
        if probed:
            logger.info("Health served on %s (plaintext)", probed)
        notifier = Notifier()
        notifier.ready()
        await stop.wait()
        notifier.stopping()
        await self._stop(engine, served, server, pump)

    def _engine(self) -> Engine:
        try:
            wanted = self._settings.max_queued_events
            with event_queue.opened(wanted) as file:
                engine = Engine(self._output, self._settings.enter, file.descriptor, wanted, self._settings.watch_share)
        except OSError as error:
            raise StartError(surroundings.engine_failure(error, self._settings.enter)) from error
        length, code = engine.queue
        event_queue.report(wanted, length, code or file.errno)
        engine.start()
        return engine

    def _check_certificate(self) -> None:
        """Log that the certificate has expired or soon will, now and each day."""
        path = self._settings.tlscertfile
        expires = tls.expiry(path)
        if expires is not None and (line := tls.expiry_line(path, expires, datetime.now(UTC))):
            logger.log(*line)
        asyncio.get_running_loop().call_later(_DAY_S, self._check_certificate)

    def _say_hello(self, address: str, enter: str, *, secure: bool) -> None:
        settings = self._settings
        for warning in surroundings.warnings(settings, enter, secure=secure):
            logger.warning("%s", warning)
        why = " (openat2 is missing)" if settings.enter == "auto" and enter == "setns" else ""
        name = "janusd" if settings.services == ("janus",) else "argusd"
        logger.info("%s %s; %s%s", name, __version__, _WAYS[enter], why)
        how = "TLS, clients must have a certificate" if secure else "plaintext"
        logger.info("Server listening on %s (%s)", address, how)

    async def _stop(self, engine: Engine, served: _Served, server: Server, pump: Pump) -> None:
        """Refuse new calls, report what the kernel has queued, let streams send what is pending, write it all out."""
        loop = asyncio.get_running_loop()
        own = ThreadPoolExecutor(1, thread_name_prefix="end")  # the loop's threads may all be looking for containers
        stopping = asyncio.create_task(server.stop(_STREAMS_S))
        await asyncio.sleep(0)
        served.discovery.close()
        for arming in served.armings:
            arming.close()
        if guarded := served.guarded():
            logger.info("No longer guarded: %s", listing(guarded))
        await loop.run_in_executor(own, served.close)
        if served.marker is not None:
            await served.marker.close()
        await self._settle(engine)
        pump.tell()
        pump.close()
        if served.metrics is not None:
            served.metrics.drain()
        await loop.run_in_executor(own, engine.close, _DRAIN_S)
        if served.metrics is not None:
            served.metrics.finish()
        await stopping
        logger.info("Stopped")
        await loop.run_in_executor(own, self._output.close, _OUTPUT_S)

    async def _settle(self, engine: Engine) -> None:
        """Wait until what has happened so far is reported, so that it is counted too while streams can be sent it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SETTLE_S):
                while not engine.settled():  # noqa: ASYNC110  (the reader does not tell)
                    await asyncio.sleep(DRAIN_EVERY_S)
