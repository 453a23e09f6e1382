"""From a request to its running containers, within the time that the call has."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from argusd.containers import Container, find, open_pid
from argusd.refusals import NoContainerError
from argusd.subjects import Request, container_id

__all__ = ["containers_of"]

logger = logging.getLogger("argusd.finding")

_FIND_AGAIN_S: Final = 0.15
_PAUSE_FACTOR: Final = 4  # where a look takes long, because of many processes, waiting must not become a load


async def containers_of(request: Request[Any], answer_by: float) -> list[Container]:
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
