"""What the calls of both services have in common: their time, their status codes, and create, destroy and state."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import errno
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, Generic, TypeAlias, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from argusd.containers import AmbiguousId
from argusd.finding import Finder
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
    exhausted,
    reason,
)
from argusd.registry import Handle, Registry
from argusd.repeats import Repeats
from argusd.subjects import InvalidRequest, Request, SubjectT

__all__ = ["Context", "PodCalls", "answering"]

logger = logging.getLogger("argusd.calls")

# A controller gives up after 5 s; a client's own deadline is kept with half a second to spare.
_ANSWER_WITHIN_S: Final = 3.8
_DEADLINE_MARGIN_S: Final = 0.5
_MAX_DETAILS: Final = 2000  # characters; a status travels in a header, whose size is limited

_CODES: Final = (
    (InvalidRequest, grpc.StatusCode.INVALID_ARGUMENT),
    (AmbiguousId, grpc.StatusCode.INVALID_ARGUMENT),
    (NoContainerError, grpc.StatusCode.NOT_FOUND),
    (LimitReachedError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (StoppingError, grpc.StatusCode.UNAVAILABLE),
    (AccessDeniedError, grpc.StatusCode.PERMISSION_DENIED),
    (PermissionError, grpc.StatusCode.PERMISSION_DENIED),
    (CannotGuardError, grpc.StatusCode.FAILED_PRECONDITION),
    (OutOfTimeError, grpc.StatusCode.DEADLINE_EXCEEDED),
    (RequestRefusedError, grpc.StatusCode.INTERNAL),
)
"""What a client is told. The log gets it, too: controllers do not print it, and the reason would be seen nowhere."""

_NO_MORE: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})

_repeats = Repeats()
# The name of what the call is about. Each call is a task, and has its own.
_about: contextvars.ContextVar[PodKey | None] = contextvars.ContextVar("about", default=None)

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
        self._finder = Finder()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def create(self, message: bytes, context: Context) -> bytes:
        """Find the containers, then watch or guard them."""
        answer_by = _answer_by(context)
        request = self.parse(message)
        containers = await self._finder.containers_of(request, answer_by)
        for warning in request.warnings:
            logger.warning("%s", warning, extra={"pod": request.pod_name, "node": request.node_name})
        handle = await self._whole(self._registry.create(request, containers, answer_by))
        return self._encoded(handle).SerializeToString()

    def parse(self, message: bytes) -> Request[SubjectT]:
        """Return the request that a message is. Raises InvalidRequest."""
        return dataclasses.replace(self._parse(self._decoded(message)), source=message)

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
        _about.set(PodKey(config.nodeName, config.podName, config.name))
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
        except Exception as error:  # noqa: BLE001  (the top of a call: it is logged, and told to the client)
            code, details = _status(error)
            _log_refusal(name, code, details, error)
        # Outside of the handler above: abort raises, and is not a failure of its own.
        return await context.abort(code, details)

    return answer


def _status(error: Exception) -> tuple[grpc.StatusCode, str]:
    """Return what to tell the client."""
    if isinstance(error, OSError) and error.errno in _NO_MORE:
        error = LimitReachedError(exhausted(error))
    code = next((code for kind, code in _CODES if isinstance(error, kind)), grpc.StatusCode.INTERNAL)
    details = reason(error) if isinstance(error, OSError) else str(error)
    if code == grpc.StatusCode.INTERNAL and not isinstance(error, RequestRefusedError):
        details = f"unexpected {type(error).__name__}: {details}"
    return code, details[:_MAX_DETAILS]


def _log_refusal(name: str, code: grpc.StatusCode, details: str, error: Exception) -> None:
    """Log why a call fails; a controller repeats it up to ten times, which is one line."""
    key = _about.get()
    who = f" for {key.name or 'a request without a name'} {key}" if key else ""
    suffix = _repeats.admit(f"{name}{who}{details}")
    if suffix is None:
        return
    unexpected = code == grpc.StatusCode.INTERNAL and not isinstance(error, RequestRefusedError)
    logger.log(
        logging.ERROR if unexpected else logging.WARNING,
        "%s failed%s: %s: %s%s",
        name,
        who,
        code.name,
        details,
        suffix,
        exc_info=error if unexpected else None,
        extra={"pod": key.pod, "node": key.node, "policy": key.name, "code": code.name} if key else {"code": code.name},
    )


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
