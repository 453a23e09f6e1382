"""Lines that say the same, and who has too many of them written."""

from __future__ import annotations

from argusd.repeats import Repeats


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_the_same_line_is_written_once_a_minute_and_counts_the_others() -> None:
    clock = Clock()
    repeats = Repeats(clock)
    assert [repeats.admit("a") for _ in range(10)] == ["", *[None] * 9]
    assert repeats.admit("b") == ""
    clock.now += 61
    assert repeats.admit("a") == " (and 9 times more since the last such line)"
    assert repeats.admit("a") is None


def test_lines_that_all_differ_are_limited_together() -> None:
    clock = Clock()
    repeats = Repeats(clock)
    written = [repeats.admit(str(number)) for number in range(1000)]
    assert sum(suffix is not None for suffix in written) == 20
    clock.now += 10
    assert repeats.admit("later") == " (980 other such lines were left out)"
    assert repeats.admit("later still") == ""
