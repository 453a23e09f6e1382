"""The gRPC service ``argus.Argusd``: messages in, registry and metrics behind, status codes out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, TypeVar

import grpc
from google.protobuf.message import DecodeError

from argusd.arming import (
    AccessDeniedError,
    LimitReachedError,
    NoContainerError,
    RequestRefusedError,
    StoppingError,
    WatchKey,
)
from argusd.containers import AmbiguousId, Container, find, open_pid
from argusd.metrics import Metrics
from argusd.proto import argus_pb2
from argusd.registry import Handle, Registry
from argusd.server import Service
from argusd.subjects import InvalidRequest, WatchRequest, container_id, parse_watch

__all__ = ["SERVICE_NAME", "WatchService"]

logger = logging.getLogger("argusd.watches")

SERVICE_NAME: Final = "argus.Argusd"

# A controller gives up after 5 s; a client's own deadline is kept with half a second to spare.
_ANSWER_WITHIN_S: Final = 3.8
_DEADLINE_MARGIN_S: Final = 0.5
_FIND_AGAIN_S: Final = 0.15
_PAUSE_FACTOR: Final = 4  # where a look takes long, because of many processes, waiting must not become a load
_MESSAGES_PER_TURN: Final = 64
_MAX_DETAILS: Final = 2000  # characters; a status travels in a header, whose size is limited

_CODES: Final = (
    (InvalidRequest, grpc.StatusCode.INVALID_ARGUMENT, logging.DEBUG),
    (AmbiguousId, grpc.StatusCode.INVALID_ARGUMENT, logging.DEBUG),
    (NoContainerError, grpc.StatusCode.NOT_FOUND, logging.DEBUG),
    (LimitReachedError, grpc.StatusCode.RESOURCE_EXHAUSTED, logging.WARNING),
    (StoppingError, grpc.StatusCode.UNAVAILABLE, logging.DEBUG),
    (AccessDeniedError, grpc.StatusCode.PERMISSION_DENIED, logging.WARNING),
    (PermissionError, grpc.StatusCode.PERMISSION_DENIED, logging.WARNING),
    (RequestRefusedError, grpc.StatusCode.INTERNAL, logging.WARNING),
)
"""What a client is told, and how loud the log is about it: a controller repeats and reports its own mistakes."""

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_T = TypeVar("_T")


class WatchService:
    """Thin: each method reads its message, calls what knows, and writes the answer."""

    def __init__(self, registry: Registry, metrics: Metrics) -> None:
        self._registry = registry
        self._metrics = metrics
        self._tasks: set[asyncio.Task[Any]] = set()

    def service(self) -> Service:
        """What the server needs. Messages stay bytes here: a malformed one is ours to answer, counts are ready-made."""
        methods: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "CreateWatch": grpc.unary_unary_rpc_method_handler(_answering("CreateWatch", self.create_watch)),
            "DestroyWatch": grpc.unary_unary_rpc_method_handler(_answering("DestroyWatch", self.destroy_watch)),
            "GetWatchState": grpc.unary_stream_rpc_method_handler(_answering("GetWatchState", self.get_watch_state)),
            "RecordMetrics": grpc.unary_stream_rpc_method_handler(_answering("RecordMetrics", self.record_metrics)),
        }
        return Service(SERVICE_NAME, grpc.method_handlers_generic_handler(SERVICE_NAME, methods))

    async def create_watch(self, message: bytes, context: _Context) -> bytes:
        """Find the containers, then watch them."""
        loop = asyncio.get_running_loop()
        within_s = _ANSWER_WITHIN_S
        remaining_s = context.time_remaining()
        if remaining_s is not None:
            within_s = min(within_s, remaining_s - _DEADLINE_MARGIN_S)
        answer_by = loop.time() + within_s
        request = parse_watch(_config(message))
        containers = await _resolve(request, answer_by)
        for warning in request.warnings:
            logger.warning("%s", warning, extra={"pod": request.pod_name, "node": request.node_name})
        handle = await self._whole(self._registry.create(request, containers, answer_by))
        return _encoded(handle).SerializeToString()

    async def destroy_watch(self, message: bytes, _context: _Context) -> bytes:
        """Stop what the request means; nothing found is not an error."""
        config = _config(message)
        key = WatchKey(config.nodeName, config.podName, config.name)
        await self._whole(self._registry.destroy(key, list(config.pid)))
        return argus_pb2.Empty().SerializeToString()

    async def get_watch_state(self, _message: bytes, context: _Context) -> None:
        """Send a snapshot."""
        for handle in self._registry.state():
            await context.write(_encoded(handle).SerializeToString())

    async def record_metrics(self, _message: bytes, context: _Context) -> None:
        """Send one message per event until the client or the daemon goes."""
        stream = self._metrics.subscribe()
        try:
            # Tells the client that it misses nothing from here on.
            await context.send_initial_metadata(())
            async with contextlib.aclosing(stream.messages()) as messages:
                sent = 0
                async for message in messages:
                    await context.write(message)
                    sent += 1
                    if sent % _MESSAGES_PER_TURN == 0:
                        await asyncio.sleep(0)
        finally:
            self._metrics.unsubscribe(stream)

    async def _whole(self, work: Coroutine[None, None, _T]) -> _T:
        """Await ``work``, which goes on to its end also when the client has gone: half a change is worse than one."""
        task: asyncio.Task[_T] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_look)
        return await asyncio.shield(task)


def _answering(
    name: str, method: Callable[[bytes, _Context], Awaitable[_T]]
) -> Callable[[bytes, _Context], Awaitable[_T]]:
    """Turn what ``method`` raises into a status."""

    async def answer(message: bytes, context: _Context) -> _T:
        try:
            return await method(message, context)
        except Exception as error:
            code, level = next(
                ((code, level) for kind, code, level in _CODES if isinstance(error, kind)),
                (grpc.StatusCode.INTERNAL, logging.ERROR),
            )
            unexpected = level == logging.ERROR
            logger.log(level, "%s failed: %s", name, error, exc_info=error if unexpected else None)
            details = f"unexpected {type(error).__name__}: {error}" if unexpected else str(error)
        # Outside of the handler above: abort raises, and is not a failure of its own.
        return await context.abort(code, details[:_MAX_DETAILS])

    return answer


def _config(message: bytes) -> argus_pb2.ArgusdConfig:
    try:
        return argus_pb2.ArgusdConfig.FromString(message)
    except DecodeError as error:
        raise InvalidRequest("request", f"not an argus.ArgusdConfig message: {error}") from error


def _encoded(handle: Handle) -> argus_pb2.ArgusdHandle:
    return argus_pb2.ArgusdHandle(nodeName=handle.node, podName=handle.pod, pid=handle.pids)


async def _resolve(request: WatchRequest, answer_by: float) -> list[Container]:
    """The running containers of a request, in its order; the caller closes them. Raises NoContainerError.

    Tries again until ``answer_by`` (loop time): a container may be on its way.
    """
    loop = asyncio.get_running_loop()
    wanted: Sequence[str | int] = request.cids or request.pids
    look = _by_cid if request.cids else _by_pid
    while True:
        begin = loop.time()
        looked = await _in_thread(look, wanted)
        found = looked.found
        pause_s = max(_FIND_AGAIN_S, _PAUSE_FACTOR * (loop.time() - begin))
        if found or not request.cids or loop.time() + pause_s >= answer_by:
            break
        await asyncio.sleep(pause_s)
    missing = ", ".join(str(one) for one in wanted if one not in found)
    what = "container" if request.cids else "process"
    if looked.starting:
        missing += f" ({_starting(looked.starting)})"
    if not found:
        raise NoContainerError(f"no running {what} found for {missing}")
    if missing:
        logger.warning("No running %s found for %s (%s:%s)", what, missing, request.pod_name, request.node_name)
    return [found[one] for one in wanted if one in found]


def _starting(pids: Mapping[str | int, int]) -> str:
    """Say why containers are left out that were found."""
    each = ", ".join(f"process {pid} of {cid}" for cid, pid in pids.items())
    return f"{each} has no root of its own yet: its runtime is still at work, or what it sees is the node itself"


@dataclass(frozen=True, slots=True)
class _Looked:
    """What was found, by what was asked for; and the pids of containers that nobody may look into yet."""

    found: dict[str | int, Container] = field(default_factory=dict)
    starting: dict[str | int, int] = field(default_factory=dict)

    def close(self) -> None:
        for container in self.found.values():
            container.close()


def _by_cid(cids: Sequence[str | int]) -> _Looked:
    ids = {cid: container_id(str(cid)) for cid in cids}
    by_id, looked = find(list(ids.values())), _Looked()
    try:
        ready = {one: container.set_up() for one, container in by_id.items()}
        for cid, one in ids.items():
            if one in by_id and ready[one]:
                looked.found[cid] = by_id[one]
            elif one in by_id:
                looked.starting[cid] = by_id[one].pid
    finally:
        for container in by_id.values():
            if container not in looked.found.values():
                container.close()
    return looked


def _by_pid(pids: Sequence[str | int]) -> _Looked:
    looked = _Looked()
    try:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                looked.found[pid] = open_pid(int(pid))
    except BaseException:
        looked.close()
        raise
    return looked


async def _in_thread(look: Callable[[Sequence[str | int]], _Looked], wanted: Sequence[str | int]) -> _Looked:
    """Run ``look`` in a thread; what it finds after the call was cancelled is closed."""
    future = asyncio.get_running_loop().run_in_executor(None, look, wanted)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        future.add_done_callback(_close_result)
        raise


def _close_result(future: asyncio.Future[_Looked]) -> None:
    if not future.cancelled() and future.exception() is None:
        future.result().close()


def _look(task: asyncio.Task[Any]) -> None:
    """Take a result that nobody may be waiting for any more, so that asyncio does not complain about it."""
    if not task.cancelled():
        task.exception()
