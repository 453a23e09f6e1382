"""Turns of walks: pure decisions, no walk at all."""

from __future__ import annotations

import asyncio

import pytest

from argusd.turns import Turn, Turns

pytestmark = pytest.mark.asyncio


class Row:
    """Walks that asked for a turn, by name, and those that got one, in their order."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.begun: dict[str, Turn] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def ask(self, *names: str) -> None:
        """The owner of a walk is the first letter of its name."""
        for name in names:
            self.tasks[name] = asyncio.create_task(self._take(name))
            await asyncio.sleep(0)
        await self.rest()

    async def _take(self, name: str) -> None:
        self.begun[name] = await self.turns.take(name[0])

    async def rest(self) -> None:
        for _ in range(4):  # a task is woken in the next round of the loop
            await asyncio.sleep(0)

    def names(self) -> list[str]:
        return list(self.begun)


async def test_a_few_walk_at_once_and_owners_take_turns() -> None:
    row = Row(Turns(at_once=2, stuck_each=4, most=100))
    await row.ask("a1", "b1", "a2", "a3", "b2", "c1")
    assert row.names() == ["a1", "b1"]
    for name in ("a1", "b1", "a2", "b2"):
        row.turns.end(row.begun[name])
        await row.rest()
    assert row.names() == ["a1", "b1", "a2", "b2", "c1", "a3"]


async def test_one_turn_is_left_for_others() -> None:
    row = Row(Turns(at_once=3, stuck_each=4, most=100))
    await row.ask("a1", "a2", "a3", "b1")
    assert row.names() == ["a1", "a2", "b1"]


async def test_stuck_walks_stop_their_owner_alone() -> None:
    row = Row(Turns(at_once=2, stuck_each=2, most=100))
    await row.ask("a1", "a2", "a3", "a4")
    for name in ("a1", "a2"):
        row.turns.go_on(row.begun[name], stuck=True)
        await row.rest()
    await row.ask("b1", "b2")
    row.turns.end(row.begun["b1"])
    await row.rest()
    assert row.names() == ["a1", "a2", "b1", "b2"]
    assert row.turns.stuck("a") == 2
    row.turns.go_on(row.begun["a1"], stuck=False)
    await row.rest()
    assert row.names()[4:] == ["a3"]


async def test_long_walks_that_make_progress_stop_nobody() -> None:
    row = Row(Turns(at_once=2, stuck_each=1, most=100))
    await row.ask(*(f"a{number}" for number in range(9)))
    for number in range(9):
        row.turns.go_on(row.begun[f"a{number}"], stuck=False)
        await row.rest()
    assert row.turns.under_way == 9


async def test_there_is_an_end_to_it() -> None:
    row = Row(Turns(at_once=4, stuck_each=4, most=3))
    await row.ask("a1", "b1", "c1", "d1")
    assert row.names() == ["a1", "b1", "c1"]
    assert row.turns.full
    row.turns.end(row.begun["b1"])
    await row.rest()
    assert row.names()[3:] == ["d1"]


async def test_who_waits_no_more_takes_no_turn() -> None:
    row = Row(Turns(at_once=2, stuck_each=4, most=100))
    await row.ask("a1", "b1", "c1", "d1")
    row.tasks["c1"].cancel()
    row.turns.end(row.begun["a1"])
    await row.rest()
    assert row.names() == ["a1", "b1", "d1"]
    for name in ("b1", "d1"):
        row.turns.end(row.begun[name])
    await row.ask("e1")
    row.tasks["e1"].cancel()
    assert row.turns.under_way == 1


async def test_a_turn_that_comes_with_the_end_of_its_taker_goes_back() -> None:
    turns = Turns(at_once=2, stuck_each=4, most=1)
    first = await turns.take("a")
    task = asyncio.create_task(turns.take("b"))
    await asyncio.sleep(0)
    turns.end(first)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert turns.under_way == 0
