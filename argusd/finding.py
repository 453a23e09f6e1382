"""From requests to their running containers, within the time that each call has.

All calls that wait share the looks: one look into ``/proc`` answers for every id that anybody waits for. A new call
comes before those that were looked for in vain, so that calls for containers that do not exist hold up no other.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

from argusd.containers import AmbiguousId, Container, find, open_pid
from argusd.refusals import LimitReachedError, NoContainerError
from argusd.repeats import Repeats
from argusd.subjects import Request, container_id

__all__ = ["Finder"]

logger = logging.getLogger("argusd.finding")

_FIND_AGAIN_S: Final = 0.15
_PAUSE_FACTOR: Final = 4  # where a look takes long, because of many processes, waiting must not become a load
_IDS_AT_ONCE: Final = 4096  # in one look; the others have their turn after it
_MOST_WAITING: Final = 4096


@dataclass(frozen=True, slots=True)
class _Looked:
    """What was found, by what was asked for; the pids of containers that nobody may look into yet; what went wrong."""

    found: dict[str | int, Container] = field(default_factory=dict)
    starting: dict[str | int, int] = field(default_factory=dict)
    errors: dict[str | int, Exception] = field(default_factory=dict)

    def close(self) -> None:
        for container in {id(container): container for container in self.found.values()}.values():
            container.close()

    def part(self, wanted: Sequence[str]) -> _Looked:
        """Return the answer for one call, with containers of its own."""
        part = _Looked(
            starting={cid: self.starting[cid] for cid in wanted if cid in self.starting},
            errors={cid: self.errors[cid] for cid in wanted if cid in self.errors},
        )
        copies: dict[int, Container] = {}
        try:
            for cid in wanted:
                if container := self.found.get(cid):
                    if id(container) not in copies:
                        copies[id(container)] = dataclasses.replace(container, pidfd=os.dup(container.pidfd))
                    part.found[cid] = copies[id(container)]
        except BaseException:
            for copy in copies.values():
                copy.close()
            raise
        return part


@dataclass(slots=True, eq=False)
class _Call:
    """One call that waits; ``answer`` gets what the last look brought."""

    wanted: Sequence[str]
    answer_by: float
    answer: asyncio.Future[_Looked]


class Finder:
    """Finds the containers of requests. One for the daemon; use it inside the running event loop."""

    def __init__(self) -> None:
        """Start with nobody waiting."""
        self._fresh: list[_Call] = []
        self._again: list[_Call] = []
        # The loop's own threads are for everybody; these two never wait for a file system.
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="finder")
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._repeats = Repeats()

    async def containers_of(self, request: Request[Any], answer_by: float) -> list[Container]:
        """The running containers of a request, in its order; the caller closes them. Raises NoContainerError.

        Tries again until ``answer_by`` (loop time): a container may be on its way.
        """
        if request.cids:
            looked = await self._look(request.cids, answer_by)
        else:
            looked = await self._in_thread(_by_pid, request.pids)
        wanted: Sequence[str | int] = request.cids or request.pids
        missing = ", ".join(str(one) for one in wanted if one not in looked.found)
        what = "container" if request.cids else "process"
        if looked.starting:
            missing += f" ({_starting(looked.starting)})"
        for error in looked.errors.values():
            looked.close()
            raise error
        if not looked.found:
            raise NoContainerError(f"no running {what} found for {missing}")
        if missing:
            self._warn(f"No running {what} found for {missing} ({request.pod_name}:{request.node_name})")
        return [looked.found[one] for one in wanted if one in looked.found]

    def _warn(self, text: str) -> None:
        """Log what a controller asks for again and again, as long as a container of a pod has ended."""
        suffix = self._repeats.admit(text)
        if suffix is not None:
            logger.warning("%s%s", text, suffix)

    async def _look(self, wanted: Sequence[str], answer_by: float) -> _Looked:
        if len(self._fresh) + len(self._again) >= _MOST_WAITING:
            raise LimitReachedError(f"{_MOST_WAITING} calls wait for containers to be found: try again later")
        loop = asyncio.get_running_loop()
        call = _Call(wanted, answer_by, loop.create_future())
        self._fresh.append(call)
        self._wake.set()
        if self._task is None:
            self._task = loop.create_task(self._run())
        try:
            return await call.answer
        except asyncio.CancelledError:
            # The answer may have come in the same moment.
            if call.answer.done() and not call.answer.cancelled() and call.answer.exception() is None:
                call.answer.result().close()
            raise

    async def _run(self) -> None:
        """Look for what calls wait for, round by round, until nobody does."""
        loop = asyncio.get_running_loop()
        look_again_at = 0.0
        while self._fresh or self._again:
            begin = loop.time()
            self._wake.clear()
            round_ = self._next_round(again=begin >= look_again_at)
            if round_:
                await self._look_for(round_)
            took_s = loop.time() - begin
            if begin >= look_again_at:
                look_again_at = loop.time() + max(_FIND_AGAIN_S, _PAUSE_FACTOR * took_s)
            if not self._fresh and self._again:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(0.0, look_again_at - loop.time())):
                        await self._wake.wait()
        self._task = None

    def _next_round(self, *, again: bool) -> list[_Call]:
        """Take the calls whose turn it is; those that were cancelled go."""
        ids = 0
        taken = []
        for queue in (self._fresh, self._again) if again else (self._fresh,):
            count = 0
            for call in queue:
                if ids and ids + len(call.wanted) > _IDS_AT_ONCE:
                    break
                count += 1
                if not call.answer.done():
                    ids += len(call.wanted)
                    taken.append(call)
            del queue[:count]
        return taken

    async def _look_for(self, calls: Sequence[_Call]) -> None:
        wanted = list(dict.fromkeys(cid for call in calls for cid in call.wanted))
        try:
            looked = await self._in_thread(_by_cid, wanted)
        except Exception as error:  # noqa: BLE001  (it is that of each call, and told there)
            for call in calls:
                if not call.answer.done():
                    call.answer.set_exception(error)
            return
        now = asyncio.get_running_loop().time()
        try:
            for call in calls:
                self._answer(call, looked, now)
        finally:
            looked.close()

    def _answer(self, call: _Call, looked: _Looked, now: float) -> None:
        """Hand over what was found; a call for which nothing was waits for another look."""
        if call.answer.done():
            return
        try:
            part = looked.part(call.wanted)
        except OSError as error:
            call.answer.set_exception(error)
            return
        if part.found or part.errors or now + _FIND_AGAIN_S >= call.answer_by:
            call.answer.set_result(part)
        else:
            self._again.append(call)

    async def _in_thread(self, look: Any, wanted: Sequence[Any]) -> _Looked:
        """Run ``look`` in a thread; what it finds after the call was cancelled is closed."""
        future = asyncio.get_running_loop().run_in_executor(self._threads, look, wanted)
        try:
            looked: _Looked = await asyncio.shield(future)
        except asyncio.CancelledError:
            future.add_done_callback(_close_result)
            raise
        return looked


def _starting(pids: Mapping[str | int, int]) -> str:
    """Say why containers are left out that were found."""
    each = ", ".join(f"process {pid} of {cid}" for cid, pid in pids.items())
    return f"{each} has no root of its own yet: its runtime is still at work, or what it sees is the node itself"


def _by_cid(cids: Sequence[str]) -> _Looked:
    """Look once for all of ``cids``; what is wrong with one of them concerns no other."""
    looked = _Looked()
    ids = {cid: container_id(cid) for cid in cids}
    by_id: dict[str, Container] = {}
    while ids:
        try:
            by_id = find(list(dict.fromkeys(ids.values())))
            break
        except AmbiguousId as error:
            for cid in [cid for cid, one in ids.items() if one == error.short]:
                looked.errors[cid] = error
                del ids[cid]
    try:
        ready = {id(container): _ready(container) for container in by_id.values()}
        for cid, one in ids.items():
            if one not in by_id:
                continue
            state = ready[id(by_id[one])]
            if isinstance(state, OSError):
                looked.errors[cid] = state
            elif state:
                looked.found[cid] = by_id[one]
            else:
                looked.starting[cid] = by_id[one].pid
    finally:
        kept = {id(container) for container in looked.found.values()}
        for container in by_id.values():
            if id(container) not in kept:
                container.close()
    return looked


def _ready(container: Container) -> bool | OSError:
    try:
        return container.set_up()
    except OSError as error:
        return error


def _by_pid(pids: Sequence[int]) -> _Looked:
    looked = _Looked()
    try:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                looked.found[pid] = open_pid(pid)
    except BaseException:
        looked.close()
        raise
    return looked


def _close_result(future: asyncio.Future[_Looked]) -> None:
    if not future.cancelled() and future.exception() is None:
        future.result().close()
