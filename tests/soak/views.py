"""Which part of the world a subscription sees in the time of a burst, and under which paths."""

from __future__ import annotations

from dataclasses import replace

from tests.soak.history import ALWAYS, FOREVER, Chain, Happening, History
from tests.soak.subjects import Path, Subject


class View:
    """What one subscription sees."""

    def __init__(self, history: History, subject: Subject) -> None:
        self.history = history
        self.subject = subject

    def tells(self, path: Path) -> bool:
        """Whether the rules cover a directory that is reported under this path."""
        return self.subject.tells(path)

    def paths(self, handle: str, begin: int, end: int) -> set[Path]:
        """Under which paths an event in a directory between ``begin`` and ``end`` can be reported."""
        return {
            self.subject.told(chain.path)
            for chain in self.history.chains(handle, begin, end)
            if self.subject.covers(chain.path)
        }

    def told(self, happening: Happening) -> set[Path]:
        """Under which paths an event can be reported at once."""
        covered = (chain.path for chain in happening.chains if self.subject.covers(chain.path))
        return {self.subject.told(path) for path in covered}

    def within(self, chain: Chain, *, itself: bool) -> tuple[str, ...] | None:
        """The directories through which one that had this path was watched; None when it was not.

        Not ``itself``: it is one above a directory that was watched, and may also be on the way to the subject path.
        """
        on_the_way = not itself and chain.path == self.subject.place[: len(chain.path)]
        return chain.handles if on_the_way or self.subject.covers(chain.path) else None

    def standing(self) -> set[str]:
        """The directories that are watched at the start, and those that the path leads through."""
        above = {self.subject.place[:size] for size in range(len(self.subject.place))}
        directories = [found for found in self.history.start if found.directory]
        return {found.handle for found in directories if self.subject.covers(found.path) or found.path in above}


class LinkView(View):
    """Of a path through a link that was pointed somewhere else, nobody knows when exactly."""

    def __init__(self, history: History, subject: Subject) -> None:
        super().__init__(history, subject)
        self._views = [View(history, replace(subject, target=target)) for target in history.targets()]

    def tells(self, path: Path) -> bool:
        return any(view.tells(path) for view in self._views)

    def paths(self, handle: str, begin: int, end: int) -> set[Path]:
        return {path for view in self._views for path in view.paths(handle, begin, end)}

    def told(self, happening: Happening) -> set[Path]:
        return {path for view in self._views for path in view.told(happening)}

    def standing(self) -> set[str]:
        return set()


class FollowView(View):
    """Of a directory that is followed wherever it goes.

    Its path may be newer than the event that is reported, or older when directories above it move on and on. What was
    in it may be gone by then: it never had the path under which it is told of.
    """

    def __init__(self, history: History, subject: Subject, followed: str) -> None:
        super().__init__(history, subject)
        self._followed = followed

    def tells(self, path: Path) -> bool:  # noqa: ARG002 - any path may be the one that it has by now
        return True

    def paths(self, handle: str, begin: int, end: int) -> set[Path]:
        then = [chain for chain in self.history.chains(handle, begin, end) if self._followed in chain.handles]
        if not then:
            return set()
        below = {chain.path[chain.handles.index(self._followed) :] for chain in then}
        tops = {chain.path for chain in self.history.chains(self._followed, ALWAYS, FOREVER)}
        ever = {chain.path for chain in self.history.chains(handle, ALWAYS, FOREVER)}
        return ever | {top + rest for top in tops for rest in below}

    def told(self, happening: Happening) -> set[Path]:
        return self.paths(happening.parent, happening.record.begin, happening.record.end)

    def within(self, chain: Chain, *, itself: bool) -> tuple[str, ...] | None:  # noqa: ARG002 - what is above does not count
        handles = chain.handles
        return handles[handles.index(self._followed) :] if self._followed in handles else None


class Certainty:
    """What one subscription must have seen, because its watches stood all the time."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._history = view.history
        self._standing = view.standing()
        self._known: dict[tuple[str, int], bool] = {}

    def until(self, handle: str, when: int) -> bool:
        """Whether a directory was watched from the start to ``when``, as was everything that was ever above it.

        A directory that had left the tree is back a moment before it is watched again. What is moved there from within
        the tree in this moment is not seen to stay.
        """
        key = handle, when
        if key not in self._known:
            self._known[key] = self._stands(handle, when)
        return self._known[key]

    def _stands(self, handle: str, when: int) -> bool:
        seen, left = {handle}, [handle]
        while left:
            at = left.pop()
            for chain in self._history.chains(at, ALWAYS, when):
                handles = self._view.within(chain, itself=at == handle)
                if handles is None or not self._standing.issuperset(handles):
                    return False
                left += [above for above in handles if above not in seen]
                seen.update(handles)
        return True

    def rediscoveries(self, handle: str) -> int:
        """How often a directory, or one above it, may have left the watched tree and come back."""
        handles = {above for chain in self._history.chains(handle, ALWAYS, FOREVER) for above in chain.handles}
        count = len(self._history.pointings()) if self._view.subject.through_link else 0
        for above in handles:
            for place in self._history.placements.get(above, ()):
                if place.before and not (
                    self.until(place.parent, place.since) and self.until(place.before, place.since)
                ):
                    count += 1
        return count


def view_of(history: History, subject: Subject, followed: str) -> View | None:
    """The view of a subscription that may follow a directory; None when that is gone in the end."""
    if subject.follow_move:
        there = any(history.chains(followed, FOREVER, FOREVER))
        return FollowView(history, subject, followed) if there else None
    if subject.through_link:
        targets = history.targets()
        straight = replace(subject, target=targets[0])
        # Pointed to where it led before, nothing is missed, unless that is gone before anybody has looked.
        if len(targets) > 1 or (history.pointings() and not history.stays(straight.place)):
            return LinkView(history, subject)
        return View(history, straight)
    return View(history, subject)
