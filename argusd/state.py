"""The requests in force, kept in a directory (``-state_dir``), so that the next daemon takes them up before it serves.

One file, replaced as a whole by rename, readable by its owner alone. What is written is the message of the client and
the containers that it means, by id, pid and start time; a boot id tells whether these can still run. The directory must
be ours and closed to other writers; no link is followed, and what is not a plain file of our own is not read.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import json
import logging
import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from argusd import processes
from argusd.containers import Container, open_again
from argusd.discovery import Seat
from argusd.registry import Entry, Registry
from argusd.subjects import InvalidRequest, Request, SubjectT

__all__ = ["Kept", "State", "StateFile", "kept_of"]

logger = logging.getLogger("argusd.state")

VERSION: Final = 1
_BYTES: Final = 64 << 20
_MOST: Final = 20_000  # requests, and containers of one
_PATIENCE_S: Final = 1.0
_FLAGS: Final = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FOREIGN_BITS: Final = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, slots=True)
class Kept:
    """One entry as it is kept. ``members`` are containers that ran, as (seat, pid, start time)."""

    service: str
    message: bytes
    members: tuple[tuple[Seat, int, int], ...]
    vacant: tuple[Seat, ...]
    seen: tuple[str, ...]
    former: tuple[int, ...]


class StateFile:
    """The file itself. All methods block, and raise OSError."""

    def __init__(self, directory: str, name: str) -> None:
        """Touch nothing yet."""
        self.path: Final = Path(directory) / f"{name}.state"

    def read(self) -> bytes | None:
        """Return the content; None when there is no file."""
        with self._directory() as directory:
            try:
                fd = os.open(self.path.name, os.O_RDONLY | _FLAGS, dir_fd=directory)
            except FileNotFoundError:
                return None
            with os.fdopen(fd, "rb") as file:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_nlink != 1:
                    raise FileExistsError(errno.EEXIST, "it is not a plain file of our own", str(self.path))
                if status.st_size > _BYTES:
                    raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(self.path))
                return file.read(_BYTES)

    def write(self, content: bytes) -> None:
        """Put ``content`` in the place of what is there; a sudden end leaves the old or the new, never a part."""
        if len(content) > _BYTES:
            raise OSError(errno.EFBIG, f"{len(content)} bytes are more than {_BYTES}", str(self.path))
        new = f"{self.path.name}.new"
        with self._directory() as directory:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(new, dir_fd=directory)
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600, dir_fd=directory)
            with os.fdopen(fd, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(fd)
            os.rename(new, self.path.name, src_dir_fd=directory, dst_dir_fd=directory)
            os.fsync(directory)

    def set_aside(self) -> Path:
        """Give the file another name, under which nobody reads it; returns that."""
        aside = self.path.with_suffix(".damaged")
        with self._directory() as directory:
            os.rename(self.path.name, aside.name, src_dir_fd=directory, dst_dir_fd=directory)
        return aside

    @contextlib.contextmanager
    def _directory(self) -> Any:
        """Open the directory, which is made when it is not there; refuse one that others can write to."""
        parent = self.path.parent
        with contextlib.suppress(FileExistsError):
            parent.mkdir(mode=0o700)
        fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            status = os.fstat(fd)
            if status.st_uid != os.geteuid() or status.st_mode & _FOREIGN_BITS:
                raise PermissionError(errno.EPERM, "it must be our own, and closed to other writers", str(parent))
            yield fd
        finally:
            os.close(fd)


class State:
    """Keeps the file in step with the registries. Must be made inside the running event loop."""

    def __init__(self, directory: str, services: Sequence[str]) -> None:
        """Without a directory nothing is kept."""
        self._file = StateFile(directory, "-".join(services)) if directory else None
        self._sources: dict[str, tuple[Registry[Any], Callable[[bytes], Request[Any]]]] = {}
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="state")
        self._writing: asyncio.Task[None] | None = None
        self._changed = False
        self._failed = False
        self._resuming = False

    def add(self, service: str, registry: Registry[SubjectT], parse: Callable[[bytes], Request[SubjectT]]) -> None:
        """Keep what ``registry`` has; ``parse`` makes its requests of messages."""
        self._sources[service] = registry, parse
        if self._file is not None:
            registry.keep = self.keep

    async def keep(self) -> None:
        """Write what is in force now. A directory that does not answer holds up nobody for long."""
        if self._resuming:
            return
        self._changed = True
        if self._writing is None or self._writing.done():
            self._writing = self._loop.create_task(self._write())
        await asyncio.wait([self._writing], timeout=_PATIENCE_S)

    async def resume(self) -> None:
        """Take up what the file has, as far as its containers still run. Before anybody can call."""
        if self._file is None:
            return
        begin = self._loop.time()
        try:
            content = await self._loop.run_in_executor(self._thread, self._file.read)
            kept = _parsed(content) if content is not None else []
        except OSError as error:
            self._complain(error)
            return
        except ValueError as error:
            await self._set_aside(error)
            return
        self._resuming = True
        try:
            done = await asyncio.gather(*map(self._resume, kept))
        finally:
            self._resuming = False
        if kept:
            logger.info("Resumed %d of %d watches and guards from %s in %.2f s",
                        sum(done), len(kept), self._file.path, self._loop.time() - begin)  # fmt: skip
        await self.keep()

    async def _resume(self, kept: Kept) -> bool:
        registry, parse = self._sources.get(kept.service, (None, None))
        if registry is None or parse is None:
            return False
        containers: list[Container] = []
        vacant = list(kept.vacant)
        try:
            request = parse(kept.message)
            for seat, pid, start_time in kept.members:
                container = open_again(seat.id, pid, start_time)
                if container is not None:
                    containers.append(container)
                else:
                    vacant.append(seat)
            former = [*kept.former, *(pid for _, pid, _ in kept.members)]
            ended = [seat.id for seat in vacant if seat not in kept.vacant]
            return await registry.resume(request, containers, vacant, kept.seen, former, ended)
        except (InvalidRequest, OSError, ValueError) as error:
            logger.warning("What was kept for %s cannot be taken up again: %s", kept.service, error)
        except Exception as error:  # noqa: BLE001  (the others must be taken up all the same)
            logger.warning("What was kept for %s cannot be taken up again: %s", kept.service, error)
        return False

    async def _write(self) -> None:
        file = self._file
        while self._changed and file is not None:
            self._changed = False
            kept = [
                kept_of(service, entry)
                for service, (registry, _) in self._sources.items()
                for entry in registry.entries
                if entry.request is not None
            ]
            try:
                await self._loop.run_in_executor(self._thread, _write, file, kept)
            except OSError as error:
                self._complain(error)
            else:
                self._failed = False

    def _complain(self, error: OSError) -> None:
        """Say once that the state cannot be kept, until it can be again."""
        if not self._failed and self._file is not None:
            logger.error("The state cannot be kept in %s, so a restart would forget it: %s",
                         self._file.path, error.strerror or error)  # fmt: skip
        self._failed = True

    async def _set_aside(self, error: ValueError) -> None:
        if self._file is None:
            return
        try:
            aside = await self._loop.run_in_executor(self._thread, self._file.set_aside)
        except OSError as refusal:
            self._complain(refusal)
            return
        logger.error("The state in %s is damaged (%s): nothing is taken up again, it is now %s",
                     self._file.path, error, aside)  # fmt: skip


def kept_of(service: str, entry: Entry[Any]) -> Kept:
    """Return what is kept of an entry."""
    members = tuple(
        (entry.seats.get(who, Seat(member.container.id)), member.container.pid, member.container.start_time)
        for who, member in entry.members.items()
    )
    message = entry.request.source if entry.request is not None else b""
    return Kept(service, message, members, tuple(entry.vacant), tuple(sorted(entry.seen)), tuple(entry.former))


def _write(file: StateFile, kept: Sequence[Kept]) -> None:
    file.write(_content(kept))


def _boot() -> str:
    return processes.read("/proc/sys/kernel/random/boot_id", 64).decode().strip()


def _content(kept: Iterable[Kept]) -> bytes:
    entries = [
        {
            "service": one.service,
            "request": base64.b64encode(one.message).decode(),
            "members": [{**_seat(seat), "pid": pid, "start_time": start} for seat, pid, start in one.members],
            "vacant": [_seat(seat) for seat in one.vacant],
            "seen": one.seen,
            "former": one.former,
        }
        for one in kept
    ]
    return json.dumps({"version": VERSION, "boot": _boot(), "entries": entries}).encode() + b"\n"


def _seat(seat: Seat) -> dict[str, Any]:
    directories = [os.fsdecode(directory) for directory in seat.directories]
    return {"id": seat.id, "name": seat.name, "pod": seat.pod, "directories": directories}


def _parsed(content: bytes) -> list[Kept]:
    """Return what is kept, nothing of another boot. Raises ValueError for what this version did not write."""
    try:
        parsed = json.loads(content)
        if parsed["version"] != VERSION:
            raise ValueError(f"version {parsed['version']}, wanted {VERSION}")
        if parsed["boot"] != _boot():
            return []
        return [_entry(one) for one in parsed["entries"][:_MOST]]
    except (TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"not what a daemon writes: {error!r}") from error


def _entry(one: Mapping[str, Any]) -> Kept:
    return Kept(
        str(one["service"]),
        base64.b64decode(one["request"], validate=True),
        tuple((_parsed_seat(seat), int(seat["pid"]), int(seat["start_time"])) for seat in one["members"][:_MOST]),
        tuple(_parsed_seat(seat) for seat in one["vacant"][:_MOST]),
        tuple(str(full) for full in one["seen"][:_MOST]),
        tuple(int(pid) for pid in one["former"][:_MOST]),
    )


def _parsed_seat(seat: Mapping[str, Any]) -> Seat:
    directories = tuple(os.fsencode(str(directory)) for directory in seat["directories"])
    return Seat(str(seat["id"]), str(seat["name"]), str(seat["pod"]), directories)
