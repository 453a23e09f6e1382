"""The gRPC server: its address, health, reflection; what it serves is given to it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import grpc

from argusd.health import SERVICE_NAME as HEALTH
from argusd.health import Health

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["AddressError", "Server", "Service"]

logger = logging.getLogger("argusd.server")

_OPTIONS: Final = (
    ("grpc.so_reuseport", 0),  # two daemons on one port would share the calls between them, unseen
    # A client that vanished (node lost, cable cut) must not keep its stream for ever; none is ended for its age.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # Controllers ping idle streams; the library's default answers more than one ping in 5 minutes with GOAWAY.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    # Until a connection has greeted, nobody knows whose it is: it holds its place for no longer than this.
    ("grpc.server_handshake_timeout_ms", 5_000),
    ("grpc.max_concurrent_streams", 256),
)
_MOST_CONNECTIONS: Final = 1024
_CONNECTIONS_SHARE: Final = 4  # so much of all descriptors
_WORDS: Final = {"argus.Argusd": "argus", "janus.Janusd": "janus"}
_ANY_IPV6: Final = "[::]"
_ANY_IPV4: Final = "0.0.0.0"  # noqa: S104  (the documented fall-back where IPv6 is off)


class AddressError(Exception):
    """The server cannot listen; ``str()`` names the address and the reason."""


@dataclass(frozen=True, slots=True)
class Service:
    """A service's full name and the handler of its methods."""

    name: str
    handler: grpc.GenericRpcHandler


class Server:
    """One grpc.aio server. Make it, and use it, inside the running event loop."""

    def __init__(self, services: Sequence[Service], descriptors: int, *, with_reflection: bool) -> None:
        """Prepare a server for ``services``; nothing is bound yet.

        Connections take a part of the ``descriptors`` that the process may have, so that enough are left for the rest.
        """
        self._health = Health([service.name for service in services])
        connections = min(_MOST_CONNECTIONS, descriptors // _CONNECTIONS_SHARE)
        self._options = (*_OPTIONS, ("grpc.max_allowed_incoming_connections", connections))
        self._server = grpc.aio.server(options=self._options)
        self._probed: grpc.aio.Server | None = None
        handlers = [self._health.handler(), *(service.handler for service in services)]
        self._server.add_generic_rpc_handlers((*handlers, _Unserved()))
        if with_reflection:
            # Here, because it takes 0.7 MB of memory, and few ask for it.
            from grpc_reflection.v1alpha import reflection  # noqa: PLC0415

            names = (*(service.name for service in services), HEALTH, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)

    async def start(self, address: str, credentials: grpc.ServerCredentials | None) -> str:
        """Listen and serve; returns the address with the port that was bound. Raises AddressError."""
        bound = _bind(self._server, address, credentials)
        await self._health.start()
        await self._server.start()
        return bound

    async def start_health(self, address: str) -> str:
        """Serve health alone in plaintext, for probes that hold no certificate; otherwise as ``start``."""
        self._probed = grpc.aio.server(options=self._options)
        self._probed.add_generic_rpc_handlers((self._health.handler(),))
        bound = _bind(self._probed, address, None)
        await self._probed.start()
        return bound

    async def stop(self, grace_s: float) -> None:
        """Report NOT_SERVING, refuse new calls, give those that run ``grace_s``, then cancel them."""
        await self._health.stop()
        servers = [self._server] if self._probed is None else [self._server, self._probed]
        await asyncio.gather(*(server.stop(grace_s) for server in servers))


class _Unserved(grpc.GenericRpcHandler):
    """Answers calls of a service that the daemon has, and was not asked to serve."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Return what refuses the call; None when it is not about one of our services."""
        word = _WORDS.get(handler_call_details.method.rpartition("/")[0].removeprefix("/"))
        if word is None:
            return None

        async def refuse(_message: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
            await context.abort(
                grpc.StatusCode.UNIMPLEMENTED,
                f"this daemon has no such method; -services={word} or -services=argus,janus would serve its service",
            )
            return b""

        return grpc.unary_unary_rpc_method_handler(refuse)


def _bind(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None) -> str:
    address = usable_address(address)
    try:
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
    except RuntimeError as error:  # lost a race for the port after the check, or an address only grpc refuses
        raise AddressError(f"Cannot listen on {address}: {error}") from error
    return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"


def usable_address(address: str) -> str:
    """Check that ``address`` can be bound now, since grpc hides the reason why not; ``[::]`` may become ``0.0.0.0``.

    Raises AddressError.
    """
    try:
        if address.startswith("unix:"):
            _try_unix(address.removeprefix("unix:").removeprefix("//"))
            return address
        host, _, port = address.rpartition(":")
        host = host or _ANY_IPV6
        if host == _ANY_IPV6 and not _ipv6_works():
            host = _ANY_IPV4
        _try_tcp(host.removeprefix("[").removesuffix("]"), int(port))
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
        raise AddressError(f"Cannot listen on {address}: {reason}") from error
    return f"{host}:{port}"


def _ipv6_works() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::", 0))
    except OSError:
        return False
    return True


def _try_tcp(host: str, port: int) -> None:
    """Bind and listen as grpc will; raises OSError (gaierror for a name that does not resolve)."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, kind, protocol, _, target in found:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            probe.bind(target)
            probe.listen()


def _try_unix(path: str) -> None:
    """Raise OSError where another server answers on ``path``: grpc would take its socket file away unasked."""
    try:
        mode = Path(path).lstat().st_mode
    except FileNotFoundError:
        Path(path).parent.stat()  # a folder that is missing is an error, a missing file is what we want
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK), path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, contextlib.suppress(ConnectionRefusedError):
        probe.connect(path)
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), path)
