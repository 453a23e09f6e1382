"""What the operator is told of the native engine's notices, and when counts are taken over."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
from collections.abc import Iterator
from typing import Any, cast

import pytest

from argusd import privileges, pump
from argusd._inotify import Notice
from argusd.kinds import PodKey
from argusd.pump import Pump
from tests.waiting import until_in_loop

WATCH, GUARD = 1, 2


class Told:
    """An engine, a store of metrics and guards that have something to say."""

    def __init__(self) -> None:
        self._eventfd = os.eventfd(0, os.EFD_NONBLOCK)
        self.waiting: list[Notice] = []
        self.of_guards: list[tuple[str, int]] = []
        self.active = True
        self.drained = 0
        self.queue = (16384, 0)

    def fileno(self) -> int:
        return self._eventfd

    def acknowledge(self) -> None:
        os.eventfd_read(self._eventfd)

    def notices(self) -> list[Notice]:
        notices, self.waiting = self.waiting, []
        return notices

    def drain(self) -> None:
        self.drained += 1

    def wake(self) -> None:
        os.eventfd_write(self._eventfd, 1)

    def close(self) -> None:
        os.close(self._eventfd)


class Guards:
    def __init__(self, told: Told) -> None:
        self._told = told

    def notices(self) -> list[tuple[str, int]]:
        notices, self._told.of_guards = self._told.of_guards, []
        return notices


class Kind:
    def __init__(self, done: str) -> None:
        self.done = done


class Arming:
    """Knows one subscription."""

    def __init__(self, number: int, done: str) -> None:
        self._number = number
        self.kind = Kind(done)

    def owner(self, number: int) -> PodKey | None:
        return PodKey("n", f"p{number}", "x") if number == self._number else None


@pytest.fixture
def told() -> Iterator[Told]:
    with contextlib.closing(Told()) as told:
        yield told


def pump_of(told: Told) -> Pump:
    armings = cast("Any", [Arming(WATCH, "watched"), Arming(GUARD, "guarded")])
    return Pump(cast("Any", told), cast("Any", told), armings, cast("Any", Guards(told)))


@pytest.mark.parametrize(
    ("notice", "level", "words"),
    [
        (
            Notice("overflow", 0, 0, 0, ""),
            logging.WARNING,
            "queue overflowed, events were lost (it holds 16384; see -max_",
        ),
        (Notice("limit", WATCH, errno.ENOSPC, 0, "/d"), logging.WARNING, "'/d' cannot be watched (p1:n): no inotify w"),
        (Notice("limit", GUARD, errno.EIO, 0, "/d"), logging.WARNING, "'/d' cannot be guarded (p2:n): Input/output"),
        (
            Notice("limit", WATCH, errno.EACCES, 0, "/d"),
            logging.WARNING,
            "denied (the daemon lacks CAP_DAC_READ_SEARCH)",
        ),
        (
            Notice("share", WATCH, errno.EDQUOT, 96000, "/d"),
            logging.WARNING,
            "'/d' and what else is new cannot be watched (p1:n): the container has 96000 watches, its share (-watch_",
        ),
        (Notice("watched", WATCH, 0, 7, ""), logging.INFO, "All is watched again (p1:n): 7 directories had waited"),
        (Notice("dropped", 0, 0, 7, ""), logging.WARNING, "7 more warnings of the engine came at once than are kept"),
        (
            Notice("forgotten", 0, errno.ENOMEM, 7, ""),
            logging.ERROR,
            "No memory to remember what is to be looked at (7",
        ),
        (
            Notice("depth", WATCH, 0, 8192, "/d"),
            logging.WARNING,
            "'/d' is deeper than 8192 directories and not watched (",
        ),
        (Notice("beyond", WATCH, 0, 0, "/d"), logging.WARNING, "'/d' was moved (p1:n): its path is longer"),
        (Notice("mounts", GUARD, 0, 9, ""), logging.WARNING, "more than 9 bytes"),
        (
            Notice("unguarded", GUARD, errno.EINVAL, 0, "/d"),
            logging.ERROR,
            "cannot be guarded, and is open (p2:n): Inv",
        ),
        (
            Notice("unguarded", GUARD, errno.ENOSPC, 0, "/d"),
            logging.ERROR,
            "no fanotify marks left (fs.fanotify.max_us",
        ),
        (Notice("limit", 9, errno.EIO, 0, "/d"), logging.WARNING, "'/d' cannot be watched : Input/output error"),
        (Notice("new", 9, 0, 0, "/d"), logging.WARNING, "Notice(kind='new'"),
    ],
)
@pytest.mark.asyncio
async def test_notices_of_the_engine(
    told: Told,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    notice: Notice,
    level: int,
    words: str,
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(privileges, "held", lambda: 0)
    telling = pump_of(told)
    told.waiting.append(notice)
    told.wake()
    await until_in_loop(lambda: bool(caplog.records))
    telling.close()
    (record,) = caplog.records
    assert record.levelno == level
    assert words in record.message
    assert told.drained == 1


@pytest.mark.parametrize(
    ("notice", "level", "words"),
    [
        (("dropped", 7), logging.WARNING, "7 answers of guards are not in the log"),
        (("failed", 7), logging.WARNING, "7 times the kernel could not open a guarded file"),
        (("broken", 1), logging.ERROR, "what it guarded is open to everybody"),
        (("new", 1), logging.WARNING, "Guard notice new: 1"),
    ],
)
@pytest.mark.asyncio
async def test_notices_of_guards_are_asked_for(
    told: Told,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    notice: tuple[str, int],
    level: int,
    words: str,
) -> None:
    monkeypatch.setattr(pump, "_ASK_EVERY_S", 0.01)
    telling = pump_of(told)
    told.of_guards.append(notice)
    await until_in_loop(lambda: bool(caplog.records))
    telling.close()
    (record,) = caplog.records
    assert record.levelno == level
    assert words in record.message


@pytest.mark.asyncio
async def test_counts_are_left_alone_while_nobody_listens(told: Told, caplog: pytest.LogCaptureFixture) -> None:
    telling = pump_of(told)
    told.active = False
    told.waiting.append(Notice("overflow", 0, 0, 0, ""))
    told.wake()
    await until_in_loop(lambda: bool(caplog.records))
    assert told.drained == 0
    telling.close()
    told.active = True
    told.wake()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert told.drained == 0  # it has left the loop
