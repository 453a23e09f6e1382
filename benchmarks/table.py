"""Results of a benchmark and how they are printed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

NO_GOAL: Final = math.inf


@dataclass(frozen=True, slots=True)
class Comparison:
    """The same quantity measured for two things in one run, many times in turn."""

    what: str
    unit: str
    measured: str
    """What the measured column is about."""
    reference: str
    values: Sequence[float]
    reference_values: Sequence[float]
    goal: float
    """The highest ratio that is good enough, or NO_GOAL."""

    @property
    def ratio(self) -> float:
        """Median against median: one disturbed round does not count."""
        return statistics.median(self.values) / statistics.median(self.reference_values)


def render(comparisons: Iterable[Comparison]) -> str:
    """One line for each comparison, with medians."""
    rows = [("", "measured", "reference", "ratio", "goal", ""), *map(_row, comparisons)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _row(one: Comparison) -> tuple[str, ...]:
    return (
        one.what,
        f"{one.measured}: {statistics.median(one.values):.1f} {one.unit}",
        f"{one.reference}: {statistics.median(one.reference_values):.1f} {one.unit}",
        f"{one.ratio:.2f}",
        f"≤ {one.goal:.2f}" if one.goal != NO_GOAL else "",
        "" if one.goal == NO_GOAL else "met" if one.ratio <= one.goal else "MISSED",
    )
