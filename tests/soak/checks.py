"""What must be true of the reports after each burst of operations, and of the watches when all is at rest."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Final

from argusd._inotify import EVENTS
from tests.soak.history import FOREVER, Chain, Found, Happening
from tests.soak.operations import Record
from tests.soak.subjects import Path, Subject
from tests.soak.views import Certainty, View
from tests.soak.watching import Report

Inode = tuple[int, int]

ARRIVALS: Final = ("CREATE", "MOVED_TO")
STRUCTURE: Final = ("CREATE", "DELETE", "MOVED_FROM", "MOVED_TO")
SEVERAL: Final = ("CLOSE_WRITE", "ATTRIB", "MOVED_FROM", "MOVED_TO")
"""Events that can follow each other, and that the kernel then merges: one report may stand for several.

Two MOVED_TO are two replacements from places that nobody watches; two MOVED_FROM an exchange and what comes after it.
The kernel does not compare their cookies. There cannot be two CREATE without a DELETE or MOVED_FROM between.
"""


def _split(path: str) -> Path:
    return tuple(path.split("/")) if path else ()


class Judge:
    """Compares the reports of one subscription with what happened."""

    def __init__(self, view: View, reports: Sequence[Report]) -> None:
        self._view = view
        self._history = view.history
        self._subject = subject = view.subject
        self._certainty = Certainty(view)
        self._entries: dict[tuple[str, str, bool], Counter[Path]] = defaultdict(Counter)
        self._about: list[Report] = []
        for report in reports:
            if report.label != subject.label:
                continue
            if report.file:
                self._entries[report.event, report.file, report.directory][_split(report.path)] += 1
            else:
                self._about.append(report)

    def violations(self) -> Iterator[str]:
        """What no order of the operations explains."""
        for text in self._unexplained():
            yield f"{self._subject.label}: {text}"
        for text in self._missing():
            yield f"{self._subject.label}: {text}"
        for text in self._selves_unexplained():
            yield f"{self._subject.label}: {text}"

    def repeated(self) -> Iterator[str]:
        """After an overflow: names that were reported as created more often than they can have been."""
        for (event, name, directory), paths in self._entries.items():
            if event == "CREATE" and name.startswith("u"):  # a name that is used only once
                count, most = sum(paths.values()), self._most(name, directory=directory)
                if count > max(1, most):
                    yield f"{self._subject.label}: {count} times CREATE {_show(paths)} {name}, expected at most {most}"

    def forgotten(self) -> Iterator[str]:
        """After an overflow: files that are there, but that neither an event nor the repair told of."""
        for (event, name, directory), happened in self._history.happenings.items():
            if event != "CREATE" or not name.startswith("u") or not self._subject.wants("CREATE"):
                continue
            if happened[0].record.operation.kind == "link":  # the file may be an old one: its birth does not tell
                continue
            if self._history.happenings.get(("MOVED_TO", name, directory)):  # likewise
                continue
            stays = [presence for presence in self._history.presences[name, directory] if presence.until == FOREVER]
            told = any(self._entries.get((arrival, name, directory)) for arrival in ARRIVALS)
            if stays and not told and all(self._certainty.until(h.parent, FOREVER) for h in happened):
                yield f"{self._subject.label}: after the repair nothing told of {name}: {happened[0].record.operation}"

    # ---- reports that nothing explains

    def _unexplained(self) -> Iterator[str]:
        for (event, name, directory), paths in self._entries.items():
            happened = self._history.happenings.get((event, name, directory), [])
            for path, count in paths.items():
                if not self._view.tells(path):
                    yield f"{event} {_show([path])} {name}: the rules do not cover this directory"
                    continue
                explained = sum(self._explains(happening, path) for happening in happened)
                if count > explained and not (event == "CREATE" and self._listed(path, name, directory=directory)):
                    yield f"{count} times {event} {_show([path])} {name}, explained {explained}: {_tell(happened)}"
            if event == "CREATE":
                count = sum(sum(self._entries.get((arrival, name, directory), {}).values()) for arrival in ARRIVALS)
                most = self._most(name, directory=directory)
                if count > most:
                    yield f"{count} arrivals of {_show(paths)} {name}, expected at most {most}: {_tell(happened)}"

    def _explains(self, happening: Happening, path: Path) -> bool:
        """Whether an event can be told under this path.

        What a new directory tells before its place is known is told when that is known, under the path it has then.
        """
        if path in self._view.told(happening):
            return True
        record = happening.record
        return not self._certainty.until(happening.parent, record.end) and path in self._view.paths(
            happening.parent, record.begin, FOREVER
        )

    def _listed(self, path: Path, name: str, *, directory: bool) -> bool:
        """Whether a listing of a new directory can have found the name there.

        It is told under the path that the directory has when the events from before the listing are known. Whether the
        file was gone by then is known only to those that asked for DELETE.
        """
        for presence in self._history.presences.get((name, directory), ()):
            until = presence.until if self._subject.wants("DELETE") else FOREVER
            paths = self._view.paths(presence.parent, presence.since, until)
            if path in paths and not self._certainty.until(presence.parent, presence.until):
                return True
        return False

    def _most(self, name: str, *, directory: bool) -> int:
        """How often the arrival of a name may be reported: once for each, and again when its directory came back."""
        placings = sum(len(self._history.happenings.get((arrival, name, directory), ())) for arrival in ARRIVALS)
        parents = {presence.parent for presence in self._history.presences.get((name, directory), ())}
        return placings + sum(self._certainty.rediscoveries(parent) for parent in parents)

    # ---- operations that nothing reported

    def _missing(self) -> Iterator[str]:
        for (event, name, directory), happened in self._history.happenings.items():
            if not self._subject.wants(event):
                continue
            certain = [
                happening for happening in happened if self._certainty.until(happening.parent, happening.record.end)
            ]
            if not certain:
                continue
            paths = self._entries.get((event, name, directory), Counter())
            least = len({happening.parent for happening in certain} if event in SEVERAL else certain)
            if sum(paths.values()) < least:
                told = f"{sum(paths.values())} times {event} {name} ({_show(paths)})"
                yield f"{told}, expected {least}: {_tell(certain)}"
                continue
            told_under = [self._view.told(happening) for happening in certain]
            alone = Counter(path for paths_of_one in told_under if len(paths_of_one) == 1 for path in paths_of_one)
            for path, count in alone.items():
                if paths[path] < (1 if event in SEVERAL else count):
                    yield f"{paths[path]} times {event} {_show([path])} {name}, expected {count}; told {_show(paths)}"

    # ---- reports of a watched directory about itself

    def _selves_unexplained(self) -> Iterator[str]:
        for report in self._about:
            path = _split(report.path)
            if path == self._subject.path or not self._subject.is_plain:  # what the path stands for has changed
                continue
            if not self._self_explained(report.event, path):
                yield f"{report.event} {report.path}: no directory can have told this"

    def _self_explained(self, event: str, path: Path) -> bool:
        return any(any(chain.path == path for chain in self._selves(event, record)) for record in self._history.records)

    def _selves(self, event: str, record: Record) -> Iterator[Chain]:
        """Where a directory can have been that tells this event about itself because of an operation."""
        if event != "DELETE_SELF":
            for handle in filter(None, (record.child, record.other)):
                yield from self._history.chains(handle, record.begin, record.end)
            return
        # It comes when the last process lets go of the directory, whatever happened above its place since then.
        place = (record.to_parent, record.to_name) if record.to_parent else (record.parent, record.name)
        if record.child or record.other:
            for chain in self._history.chains(place[0], record.begin, FOREVER):
                yield Chain((*chain.path, place[1]), ())


def armed(
    found: Sequence[Found], subjects: Sequence[Subject], watched: dict[Inode, int], above: set[Inode]
) -> Iterator[str]:
    """Compare the kernel's list of watches with what the rules say of the files that there are.

    ``above`` are the directories from the root of the file system to the world, which subject paths go through.
    """
    wanted = _wanted(found, subjects)
    names = {entry.inode: "/".join(entry.path) for entry in found}
    for inode, mask in wanted.items():
        if inode not in watched:
            yield f"not watched: {names[inode]}"
        elif mask & ~watched[inode]:
            missing = [name for name, bit in EVENTS.items() if bit & mask & ~watched[inode]]
            yield f"watched without {' '.join(missing)}: {names[inode]}"
    # A file that lost the name under which it was watched may still tell its end.
    files = {entry.inode for entry in found if not entry.directory}
    for inode in watched.keys() - wanted.keys() - _steps(found, subjects) - above - files:
        yield f"watched for nothing: {names.get(inode, f'{inode}, which is nowhere in the world')}"


def _wanted(found: Sequence[Found], subjects: Sequence[Subject]) -> dict[Inode, int]:
    """What must be watched, and for which events."""
    wanted: dict[Inode, int] = defaultdict(int)
    for subject in subjects:
        for entry in found:
            itself = entry.path == subject.place and not subject.only_dir
            if (entry.directory and subject.covers(entry.path)) or itself:
                wanted[entry.inode] |= subject.mask
    return wanted


def _steps(found: Sequence[Found], subjects: Sequence[Subject]) -> set[Inode]:
    """The directories that subject paths go through."""
    steps = {subject.place[:size] for subject in subjects for size in range(len(subject.place))}
    return {entry.inode for entry in found if entry.directory and entry.path in steps}


def probed(
    probes: dict[str, Path], subjects: Sequence[Subject], reports: Sequence[Report], events: Sequence[str]
) -> Iterator[str]:
    """After a probe of its own name in every directory: those subscriptions tell it that cover the directory, once."""
    told = Counter((report.label, report.event, report.path, report.file) for report in reports if report.file)
    asked = [(subject, event) for subject in subjects for event in events if subject.wants(event)]
    for subject, event in asked:
        for name, path in probes.items():
            if subject.covers(path):
                count = told.pop((subject.label, event, "/".join(subject.told(path)), name), 0)
                if count != 1:
                    yield f"{subject.label}: probe {event} {_show([path])} {name} reported {count} times"
    for (label, event, at, name), count in told.items():
        if name in probes and event in events:
            yield f"{label}: probe {event} {at} {name} reported {count} times, made in {_show([probes[name]])}"


def _show(paths: Sequence[Path] | Counter[Path]) -> str:
    return " ".join("/".join(path) or "." for path in paths) or "nowhere"


def _tell(happened: Sequence[Happening]) -> str:
    some = (f"{h.record.operation} in {_show([chain.path for chain in h.chains])}" for h in happened[:4])
    return "; ".join(some) or "no operation"
