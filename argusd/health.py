"""The standard health service, with an answer for every message: one that makes no sense is the client's mistake."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["SERVICE_NAME", "Health"]

SERVICE_NAME: Final = health.SERVICE_NAME
_SERVING: Final = health_pb2.HealthCheckResponse.SERVING


class Health:
    """``grpc.health.v1.Health`` for a fixed set of services."""

    def __init__(self, names: Sequence[str]) -> None:
        """Know ``names`` and the server as a whole."""
        self._names = ("", *names)
        self._servicer = health.aio.HealthServicer()

    def handler(self) -> grpc.GenericRpcHandler:
        """What the server needs. Messages stay bytes here: a malformed one is ours to answer."""
        encode = health_pb2.HealthCheckResponse.SerializeToString
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Check": grpc.unary_unary_rpc_method_handler(self._check, response_serializer=encode),
            "Watch": grpc.unary_stream_rpc_method_handler(self._watch, response_serializer=encode),
        }
        return grpc.method_handlers_generic_handler(SERVICE_NAME, methods)

    async def start(self) -> None:
        """Report SERVING for each service."""
        for name in self._names:
            await self._servicer.set(name, _SERVING)

    async def stop(self) -> None:
        """Report NOT_SERVING from now on."""
        await self._servicer.enter_graceful_shutdown()

    async def _check(self, message: bytes, context: Any) -> health_pb2.HealthCheckResponse:
        request = await _decoded(message, context)
        if request.service not in self._names:
            known = ", ".join(name for name in self._names if name)
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no such service is served here; there are: {known}")
        answer: health_pb2.HealthCheckResponse = await self._servicer.Check(request, context)
        return answer

    async def _watch(self, message: bytes, context: Any) -> None:
        await self._servicer.Watch(await _decoded(message, context), context)


async def _decoded(message: bytes, context: Any) -> health_pb2.HealthCheckRequest:
    request = health_pb2.HealthCheckRequest()
    try:
        request.ParseFromString(message)
    except DecodeError:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no grpc.health.v1.HealthCheckRequest message")
    return request
