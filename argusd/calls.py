"""What the calls of both services have in common: their time, their status codes, and create, destroy and state."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, Generic, TypeAlias, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from argusd.containers import AmbiguousId
from argusd.finding import containers_of
from argusd.kinds import PodKey
from argusd.proto import argus_pb2, janus_pb2
from argusd.refusals import (
    AccessDeniedError,
    CannotGuardError,
    LimitReachedError,
    NoContainerError,
    OutOfTimeError,
    RequestRefusedError,
    StoppingError,
)
from argusd.registry import Handle, Registry
from argusd.subjects import InvalidRequest, Request, SubjectT

__all__ = ["Context", "PodCalls", "answering"]

logger = logging.getLogger("argusd.calls")

# A controller gives up after 5 s; a client's own deadline is kept with half a second to spare.
_ANSWER_WITHIN_S: Final = 3.8
_DEADLINE_MARGIN_S: Final = 0.5
_MAX_DETAILS: Final = 2000  # characters; a status travels in a header, whose size is limited

_CODES: Final = (
    (InvalidRequest, grpc.StatusCode.INVALID_ARGUMENT, logging.DEBUG),
    (AmbiguousId, grpc.StatusCode.INVALID_ARGUMENT, logging.DEBUG),
    (NoContainerError, grpc.StatusCode.NOT_FOUND, logging.DEBUG),
    (LimitReachedError, grpc.StatusCode.RESOURCE_EXHAUSTED, logging.WARNING),
    (StoppingError, grpc.StatusCode.UNAVAILABLE, logging.DEBUG),
    (AccessDeniedError, grpc.StatusCode.PERMISSION_DENIED, logging.WARNING),
    (PermissionError, grpc.StatusCode.PERMISSION_DENIED, logging.WARNING),
    (CannotGuardError, grpc.StatusCode.FAILED_PRECONDITION, logging.WARNING),
    (OutOfTimeError, grpc.StatusCode.DEADLINE_EXCEEDED, logging.WARNING),
    (RequestRefusedError, grpc.StatusCode.INTERNAL, logging.WARNING),
)
"""What a client is told, and how loud the log is about it: a controller repeats and reports its own mistakes."""

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_T = TypeVar("_T")


_ConfigT = TypeVar("_ConfigT", bound=argus_pb2.ArgusdConfig | janus_pb2.JanusdConfig)


class PodCalls(Generic[SubjectT, _ConfigT]):
    """Create, destroy and state, as both services have them."""

    def __init__(
        self,
        registry: Registry[SubjectT],
        config: type[_ConfigT],
        parse: Callable[[_ConfigT], Request[SubjectT]],
        encoded: Callable[[Handle], Message],
    ) -> None:
        """``parse`` makes a request of a ``config``, ``encoded`` makes an answer."""
        self._registry = registry
        self._config = config
        self._parse = parse
        self._encoded = encoded
        self._tasks: set[asyncio.Task[Any]] = set()

    async def create(self, message: bytes, context: Context) -> bytes:
        """Find the containers, then watch or guard them."""
        answer_by = _answer_by(context)
        request = self._parse(self._decoded(message))
        containers = await containers_of(request, answer_by)
        for warning in request.warnings:
            logger.warning("%s", warning, extra={"pod": request.pod_name, "node": request.node_name})
        handle = await self._whole(self._registry.create(request, containers, answer_by))
        return self._encoded(handle).SerializeToString()

    async def destroy(self, message: bytes) -> None:
        """Stop what the request means; nothing found is not an error."""
        config = self._decoded(message)
        key = PodKey(config.nodeName, config.podName, config.name)
        await self._whole(self._registry.destroy(key, list(config.pid)))

    async def send_state(self, context: Context) -> None:
        """Send a snapshot."""
        for handle in self._registry.state():
            await context.write(self._encoded(handle).SerializeToString())

    def _decoded(self, message: bytes) -> _ConfigT:
        config = self._config()
        try:
            config.ParseFromString(message)
        except DecodeError as error:
            raise InvalidRequest("request", f"no {config.DESCRIPTOR.full_name} message: {error}") from error
        return config

    async def _whole(self, work: Coroutine[None, None, _T]) -> _T:
        """Await ``work``, which goes on to its end also when the client has gone: half a change is worse than one."""
        task: asyncio.Task[_T] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_look)
        return await asyncio.shield(task)


def answering(
    name: str, method: Callable[[bytes, Context], Awaitable[_T]]
) -> Callable[[bytes, Context], Awaitable[_T]]:
    """Turn what ``method`` raises into a status."""

    async def answer(message: bytes, context: Context) -> _T:
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


def _answer_by(context: Context) -> float:
    """When the answer must be on its way, in the loop's time."""
    within_s = _ANSWER_WITHIN_S
    remaining_s = context.time_remaining()
    if remaining_s is not None:
        within_s = min(within_s, remaining_s - _DEADLINE_MARGIN_S)
    return asyncio.get_running_loop().time() + within_s


def _look(task: asyncio.Task[Any]) -> None:
    """Take a result that nobody may be waiting for any more, so that asyncio does not complain about it."""
    if not task.cancelled():
        task.exception()
