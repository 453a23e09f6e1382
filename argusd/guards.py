"""The gRPC service ``janus.Janusd``: messages in, registry behind, status codes out."""

from __future__ import annotations

from typing import Final

import grpc

from argusd.calls import Context, PodCalls, answering
from argusd.marker import Marker
from argusd.proto import janus_pb2
from argusd.registry import Handle, Registry
from argusd.server import Service
from argusd.subjects import GuardSubject, Request, parse_guard

__all__ = ["SERVICE_NAME", "GuardService"]

SERVICE_NAME: Final = "janus.Janusd"


class GuardService:
    """Thin: each method reads its message, calls what knows, and writes the answer."""

    def __init__(self, registry: Registry[GuardSubject], marker: Marker) -> None:
        """``marker`` is kept up to date before a call is answered."""
        self._calls = PodCalls(registry, janus_pb2.JanusdConfig, parse_guard, _encoded)
        self._marker = marker

    def parse(self, message: bytes) -> Request[GuardSubject]:
        """Return the request that a message is. Raises InvalidRequest."""
        return self._calls.parse(message)

    def service(self) -> Service:
        """What the server needs. Messages stay bytes here: a malformed one is ours to answer."""
        methods: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "CreateGuard": grpc.unary_unary_rpc_method_handler(answering("CreateGuard", self.create_guard)),
            "DestroyGuard": grpc.unary_unary_rpc_method_handler(answering("DestroyGuard", self.destroy_guard)),
            "GetGuardState": grpc.unary_stream_rpc_method_handler(answering("GetGuardState", self.get_guard_state)),
        }
        return Service(SERVICE_NAME, grpc.method_handlers_generic_handler(SERVICE_NAME, methods))

    async def create_guard(self, message: bytes, context: Context) -> bytes:
        """Guard what the request means."""
        answer = await self._calls.create(message, context)
        await self._marker.update()
        return answer

    async def destroy_guard(self, message: bytes, _context: Context) -> bytes:
        """Let go of what the request means."""
        await self._calls.destroy(message)
        await self._marker.update()
        return janus_pb2.Empty().SerializeToString()

    async def get_guard_state(self, _message: bytes, context: Context) -> None:
        """Send a snapshot."""
        await self._calls.send_state(context)


def _encoded(handle: Handle) -> janus_pb2.JanusdHandle:
    # Our descriptors are of no use in another process. One for each pid all the same: a client may read the two lists
    # side by side, as the original filled them.
    descriptors = [0] * len(handle.pids)
    return janus_pb2.JanusdHandle(
        nodeName=handle.node, podName=handle.pod, pid=handle.pids, processEventfd=descriptors
    )  # fmt: skip
