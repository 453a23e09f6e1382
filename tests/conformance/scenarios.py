"""The recordings of the original daemons, as values, and the rules by which lines are compared."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from tests.conformance.expected import (
    A_PATH_IS_A_PLACE,
    AS_RECORDED,
    GUARD_OVERRIDES,
    OVERRIDES,
    PLACE_REASON,
    Override,
    in_the_container,
)

FOLDER: Final = Path(__file__).parent / "recordings"
GLOG_PREFIX: Final = re.compile(r"^([IWEF])\d{4} \d\d:\d\d:\d\d\.\d{6} +\d+ [^\s\]]+:\d+\] ")
EVENT_LINE: Final = re.compile(r"I ([A-Z_]+) (?:file|directory) '")
TAGS: Final = re.compile(r"^(I (?:<[A-Z]+> )?[A-Z_]+ (?:file|directory) '.*' \([^)]*\) )(.+)$")


@dataclass(frozen=True, slots=True)
class Step:
    """One operation and what must follow from it."""

    operation: tuple[Any, ...]
    lines: tuple[str, ...]
    metrics: Counter[tuple[str, str, str]]
    """(watcher, event, node) of each message."""
    result: Any
    """The answer of an operation that is an rpc."""


@dataclass(frozen=True, slots=True)
class Recording:
    """One scenario: the request, the files it starts from, and its steps."""

    name: str
    request: dict[str, Any]
    setup: tuple[tuple[Any, ...], ...]
    response: dict[str, Any]
    status: str
    created: tuple[str, ...]
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class GuardStep:
    """One operation on what is guarded, what must be told, and what must come of it."""

    operation: str
    lines: tuple[str, ...]
    result: Any


@dataclass(frozen=True, slots=True)
class GuardRecording:
    """One scenario of janusd."""

    name: str
    request: dict[str, Any]
    setup: tuple[str, ...]
    response: dict[str, Any]
    created: tuple[str, ...]
    steps: tuple[GuardStep, ...]


def load_guards() -> list[GuardRecording]:
    """Every recording of janusd, with its overrides applied."""
    return [_load_guard(path) for path in sorted(FOLDER.glob("janus_*.json"))]


def _load_guard(path: Path) -> GuardRecording:
    recorded = json.loads(path.read_text())
    override = GUARD_OVERRIDES.get(path.stem, Override(reason=""))
    steps = []
    for index, step in enumerate(recorded["operations"]):
        lines = override.operations.get(index)
        if lines is None:
            lines = tuple(normalise(in_the_container(line)) for line in step["log"])
        steps.append(GuardStep(step["op"], lines, override.results.get(index, step["result"])))
    return GuardRecording(
        name=path.stem,
        request=recorded["request"],
        setup=tuple(recorded["setup"]),
        response=recorded["response"],
        created=tuple(recorded["log_after_create"]),
        steps=tuple(steps),
    )


def load_all() -> list[Recording]:
    """Every recording of argusd."""
    names = sorted(path.stem for path in FOLDER.glob("*.json") if not path.stem.startswith("janus_"))
    return [load(name) for name in names]


def load(name: str) -> Recording:
    """One recording with its override applied; ValueError when one that needs an override has none."""
    recorded = json.loads((FOLDER / f"{name}.json").read_text())
    override = override_of(name)
    if not override.reason and recorded["expect"] == "better" and name not in AS_RECORDED:
        raise ValueError(f"{name}: the original was wrong here; expected.py must say what is right")
    return Recording(
        name=name,
        request=recorded["request"],
        setup=tuple(map(tuple, recorded["setup"])),
        response=recorded["response"],
        status=override.status,
        created=tuple(recorded["log_after_create"]) if override.created is None else override.created,
        steps=tuple(_step(index, step, override) for index, step in enumerate(recorded["operations"])),
    )


def override_of(name: str) -> Override:
    """What replaces the recorded answers of one recording; without a reason when nothing does."""
    override = OVERRIDES.get(name, Override(reason=""))
    if name not in A_PATH_IS_A_PLACE:
        return override
    return replace(
        override,
        reason=f"{override.reason} {PLACE_REASON}".lstrip(),
        operations={**override.operations, **A_PATH_IS_A_PLACE[name]},
    )


def _step(index: int, recorded: dict[str, Any], override: Override) -> Step:
    metrics = Counter((one["argusWatcher"], one["event"], one["nodeName"]) for one in recorded["metrics"])
    lines = override.operations.get(index)
    if lines is None:
        lines = tuple(map(normalise, recorded["log"]))
    else:
        events = [match[1].lower() for line in lines if (match := EVENT_LINE.match(line))]
        metrics = Counter(("w1", event, "node1") for event in events)
    result = override.results.get(index, recorded.get("result"))
    return Step(tuple(recorded["op"]), lines, metrics, result)


def normalise(line: str) -> str:
    """A line without what does not count: slashes that the original doubled, and the order among tags."""
    line = line.replace("//", "/")
    if match := TAGS.match(line):
        line = match[1] + ",".join(sorted(match[2].split(",")))
    return line


def strip_prefix(line: str) -> str:
    """Severity letter and text of a line in glog form; a line in another form is kept whole, to be seen in a diff."""
    if match := GLOG_PREFIX.match(line):
        return f"{match[1]} {line[match.end() :]}"
    return line


def merged(lines: tuple[str, ...]) -> tuple[str, ...]:
    """Runs of one directory's ACCESS as a single line.

    The two reads of a listing make two events, and the kernel merges an event into an identical one that is still last
    in the queue (inotify(7)): how many there are depends on how soon the daemon reads.
    """
    runs = [(line, len(list(run))) for line, run in itertools.groupby(lines)]
    return tuple(line for line, count in runs for _ in range(1 if line.startswith("I ACCESS directory") else count))


def matches(expected: str, line: str) -> bool:
    """Whether a line is the expected one, in which ``…`` stands for any text."""
    return re.fullmatch(re.escape(expected).replace("…", ".*"), line) is not None
