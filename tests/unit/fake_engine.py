"""An engine that watches nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from argusd._inotify import Armed
from argusd._records import Encoder


class FakeEngine:
    """Takes notes of what is on; ``walk`` is what arming does."""

    def __init__(self) -> None:
        self.subjects: dict[int, tuple[int, tuple[bytes, ...]]] = {}
        self.on: set[int] = set()
        self.freed: set[int] = set()
        self.switches: list[tuple[list[int], list[int]]] = []
        self.counters: dict[int, int] = {}
        self._last_counter = 0
        self.walk: Callable[[int], None] = lambda _number: None
        self.progress: tuple[int, int] | None = (0, 0)
        self.errors: dict[bytes, int] = {}
        self.refuse: OSError | None = None

    def subscribe(
        self, encoder: Encoder, counter: int, pid: int, pidfd: int, paths: Sequence[bytes], *rest: Any
    ) -> int:
        assert encoder.message("CREATE", "file", b"/d", b"x")
        assert pidfd >= 0
        assert len(rest) == 6
        number = len(self.subjects) + 1
        self.subjects[number] = (pid, tuple(paths))
        self.counters[number] = counter
        return number

    def guard(self, _guards: object, encoder: Encoder, pid: int, pidfd: int, deny: Sequence[bytes], *rest: Any) -> int:
        assert encoder.message("OPEN_PERM", "file", b"/d", response="DENY")
        assert pidfd >= 0
        allow, mask, *switches = rest
        assert mask & ~0x30000 == 0
        assert [type(one) for one in switches] == [bool, bool, bool]
        if self.refuse:
            raise self.refuse
        number = len(self.subjects) + 1
        self.subjects[number] = (pid, (*deny, *allow))
        self.counters[number] = 0
        return number

    def arm(self, subscription: int) -> Armed:
        self.walk(subscription)
        paths = self.subjects[subscription][1]
        return Armed(tuple(self.errors.get(path, 0) for path in paths), 1, 0.0)

    def walked(self, _subscription: int) -> tuple[int, int] | None:
        return self.progress

    def switch(self, on: Sequence[int], off: Sequence[int]) -> bool:
        assert not self.freed.intersection([*on, *off]), "a number is never used again"
        self.switches.append((list(on), list(off)))
        self.on = (self.on | set(on)) - set(off)
        self.freed |= set(off)
        return False

    def new_counter(self) -> int:
        self._last_counter += 1
        return self._last_counter

    def free_counter(self, counter: int) -> None:
        assert not any(self.counters[number] == counter for number in self.on), "a live subscription uses it"

    def want_counts(self, wanted: bool) -> None:  # noqa: FBT001  (the native face)
        pass

    def drain_counts(self) -> list[tuple[int, int, int]]:
        return []

    def watched(self) -> set[tuple[int, tuple[bytes, ...]]]:
        return {self.subjects[number] for number in self.on}
