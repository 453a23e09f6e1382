"""The gRPC service ``argus.Argusd``: messages in, registry and metrics behind, status codes out."""

from __future__ import annotations

from typing import Final

import grpc

from argusd.calls import Context, PodCalls, answering
from argusd.metrics import Metrics
from argusd.proto import argus_pb2
from argusd.registry import Handle, Registry
from argusd.server import Service
from argusd.subjects import Request, Subject, parse_watch

__all__ = ["SERVICE_NAME", "WatchService"]

SERVICE_NAME: Final = "argus.Argusd"


class WatchService:
    """Thin: each method reads its message, calls what knows, and writes the answer."""

    def __init__(self, registry: Registry[Subject], metrics: Metrics) -> None:
        """``metrics`` counts the events of the watches in ``registry``."""
        self._calls = PodCalls(registry, argus_pb2.ArgusdConfig, parse_watch, _encoded)
        self._metrics = metrics

    def parse(self, message: bytes) -> Request[Subject]:
        """Return the request that a message is. Raises InvalidRequest."""
        return self._calls.parse(message)

    def service(self) -> Service:
        """What the server needs. Messages stay bytes here: a malformed one is ours to answer, counts are ready-made."""
        methods: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "CreateWatch": grpc.unary_unary_rpc_method_handler(answering("CreateWatch", self._calls.create)),
            "DestroyWatch": grpc.unary_unary_rpc_method_handler(answering("DestroyWatch", self.destroy_watch)),
            "GetWatchState": grpc.unary_stream_rpc_method_handler(answering("GetWatchState", self.get_watch_state)),
            "RecordMetrics": grpc.unary_stream_rpc_method_handler(answering("RecordMetrics", self.record_metrics)),
        }
        return Service(SERVICE_NAME, grpc.method_handlers_generic_handler(SERVICE_NAME, methods))

    async def destroy_watch(self, message: bytes, _context: Context) -> bytes:
        """Stop what the request means."""
        await self._calls.destroy(message)
        return argus_pb2.Empty().SerializeToString()

    async def get_watch_state(self, _message: bytes, context: Context) -> None:
        """Send a snapshot."""
        await self._calls.send_state(context)

    async def record_metrics(self, _message: bytes, context: Context) -> None:
        """Send one message per event until the client or the daemon goes."""
        stream = self._metrics.subscribe()
        try:
            # Tells the client that it misses nothing from here on.
            await context.send_initial_metadata(())
            await stream.send(context.write)
        finally:
            self._metrics.unsubscribe(stream)


def _encoded(handle: Handle) -> argus_pb2.ArgusdHandle:
    return argus_pb2.ArgusdHandle(nodeName=handle.node, podName=handle.pod, pid=handle.pids)
