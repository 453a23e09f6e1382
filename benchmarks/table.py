"""Results of the benchmarks and how they are printed: one table, ratios in the middle, verdicts at the end."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

__all__ = ["NO_GOAL", "Comparison", "Losses", "Lost", "Row", "render", "verdicts"]

NO_GOAL: Final = math.inf
_HEADINGS: Final = ("", "measured", "", "reference", "", "ratio", "goal", "")


class Row(Protocol):
    """One line of the table."""

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None without one."""

    def cells(self) -> tuple[str, ...]:
        """What, measured and its spread, reference and its spread, ratio, goal."""


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

    @property
    def met(self) -> bool | None:
        """Judged by the ratio as it is printed."""
        return None if self.goal == NO_GOAL else round(self.ratio, 2) <= self.goal

    def cells(self) -> tuple[str, ...]:
        """Medians, and how far the values spread."""
        return (
            self.what,
            f"{self.measured}: {_number(statistics.median(self.values))} {self.unit}",
            _spread(self.values),
            f"{self.reference}: {_number(statistics.median(self.reference_values))} {self.unit}",
            _spread(self.reference_values),
            f"{self.ratio:.2f}",
            f"≤ {self.goal:.2f}" if self.goal != NO_GOAL else "",
        )


@dataclass(frozen=True, slots=True)
class Lost:
    """What one program has not told of."""

    missing: int
    total: int
    overflows: int = 0
    """Of the kernel's queue, as far as the program tells of them."""

    def __str__(self) -> str:
        """As it stands in the table."""
        overflows = f", {self.overflows:,} overflows" if self.overflows else ""
        return f"{self.missing:,} of {self.total:,}{overflows}"


@dataclass(frozen=True, slots=True)
class Losses:
    """How much of what was there is missing."""

    what: str
    measured: str
    lost: Lost
    reference: str = ""
    """Empty when there is none."""
    reference_lost: Lost | None = None
    has_goal: bool = False
    """Whether nothing may be missing."""

    @property
    def met(self) -> bool | None:
        """Nothing is missing, and there was something."""
        return self.lost.total > 0 and self.lost.missing == 0 if self.has_goal else None

    def cells(self) -> tuple[str, ...]:
        """No ratio: the reference may have lost nothing."""
        return (
            self.what,
            f"{self.measured}: {self.lost}",
            "",
            f"{self.reference}: {self.reference_lost}" if self.reference else "",
            "",
            "",
            "0" if self.has_goal else "",
        )


def render(sections: Mapping[str, Sequence[Row]]) -> str:
    """One line for each row, under the title of its section. Columns are as wide as the widest cell of all."""
    cells = {title: [(*row.cells(), _verdict(row)) for row in rows] for title, rows in sections.items()}
    all_rows = [_HEADINGS, *(row for rows in cells.values() for row in rows)]
    widths = [max(len(row[column]) for row in all_rows) for column in range(len(_HEADINGS))]
    lines = [_line(_HEADINGS, widths)]
    for title, rows in cells.items():
        lines += [title, *(_line(row, widths) for row in rows)]
    return "\n".join(lines)


def verdicts(rows: Iterable[Row]) -> str:
    """How many goals are met, in words."""
    judged = [row.met for row in rows if row.met is not None]
    return f"{judged.count(True)} of {len(judged)} goals met, {judged.count(False)} MISSED"


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    return "  " + "  ".join(map(str.ljust, row, widths)).rstrip()


def _verdict(row: Row) -> str:
    return "" if row.met is None else "met" if row.met else "MISSED"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _spread(values: Sequence[float]) -> str:
    """From the lowest to the highest of a few values; of many, the middle half."""
    if len(values) < 2:
        return ""
    if len(values) < 10:
        low, high = min(values), max(values)
    else:
        low, _, high = statistics.quantiles(values, n=4)
    return f"({_number(low)}..{_number(high)})"
