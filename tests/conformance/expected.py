"""Where a recording of the original is not what this daemon must do, and why.

``OVERRIDES`` replaces what was recorded; the reasons are the rules of this project. ``…`` in a line stands for any
text. ``A_PATH_IS_A_PLACE`` replaces further steps, all for one and the same reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Override:
    """What is expected instead of a recording's own answers; what is not named here stays as recorded."""

    reason: str
    created: tuple[str, ...] | None = None
    """Lines after the first CreateWatch."""
    operations: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    """Lines by the operation's index. Its metrics are one message for each event line."""
    results: Mapping[int, Any] = field(default_factory=dict)
    """Answers of the rpcs among the operations, by index."""
    status: str = ""
    """The gRPC status with which CreateWatch must fail."""


POD: Final = "(pod1:node1)"
STARTING: Final = f"I Starting `inotify` watcher {POD}"
MALFORMED: Final = Override(
    reason=(
        "A malformed logFormat must never cost an event: it is warned about once, when the watch is created, and the "
        "default format is used. The original warned at every event instead of reporting it."
    ),
    created=(STARTING, 'W Malformed ArgusWatcher `.spec.logFormat`: "…"'),
    operations={0: (f"I CREATE file '/data/d/x' {POD} k=v",)},
)


def _events(path: str, *events: str) -> tuple[str, ...]:
    return tuple(f"I {event} '{path}' {POD} " for event in events)


OVERRIDES: Final[dict[str, Override]] = {
    **dict.fromkeys(("logformat_02", "logformat_03", "logformat_04", "logformat_05", "logformat_06"), MALFORMED),
    "logformat_11": MALFORMED,
    "cid_unknown": Override(
        reason="A container that cannot be found is an error that names it, not a success that watches nothing.",
        operations={1: ()},
        results={0: []},
        status="NOT_FOUND",
    ),
    "event_dir_modify": Override(
        reason="Every kernel event that was asked for is reported, also the first write to a file just created.",
        operations={0: _events("/data/d/new.txt", "MODIFY file")},
    ),
    "event_dir_open": Override(
        reason="Every kernel event that was asked for is reported, also the open() that creates the file.",
        operations={0: _events("/data/d/new.txt", "OPEN file")},
    ),
    "ignore_names": Override(
        reason=(
            "What is created in a new directory before its watch stands is reported as CREATE; an ignored name only "
            "keeps the directory from being watched itself."
        ),
        operations={7: (*_events("/data/d/new", "CREATE directory"), *_events("/data/d/new/.git", "CREATE directory"))},
    ),
    "one_of_two_roots_deleted": Override(
        reason="The end of one subject path leaves the other one watched, new directories included.",
        operations={
            2: _events("/data/e/n", "CREATE directory"),
            3: _events("/data/e/n/x", "CREATE file"),
        },
        results={4: [{"nodeName": "node1", "podName": "pod1", "pid": [900001]}]},
    ),
    "path_nonexistent": Override(
        reason="A path that does not exist is watched when it does; until then it costs one line.",
        created=(STARTING, f"I '/data/none' does not exist in container … {POD}"),
    ),
    "recursive_all_events": Override(
        reason=(
            "What the daemon itself does while it walks a tree is not reported; a removed directory is reported by "
            "its parent too."
        ),
        created=(STARTING,),
        operations={
            0: _events("/data/d/a/b/f2", "CREATE file", "OPEN file", "MODIFY file", "CLOSE_WRITE file"),
            1: _events("/data/d/a/n", "CREATE directory"),
            3: (
                *_events("/data/d/a/n", *("OPEN directory",) * 2, *("ACCESS directory",) * 4),
                *_events("/data/d/a/n/x", "DELETE file"),
                *_events("/data/d/a/n", *("CLOSE_NOWRITE directory",) * 2, "DELETE_SELF file", "DELETE directory"),
            ),
        },
    ),
    "recursive_basic": Override(
        reason=(
            "What is created in a new directory before its watch stands is reported once; a removed directory is "
            "reported by its parent too, after its own DELETE_SELF."
        ),
        operations={
            5: (
                *_events("/data/d/p", "CREATE directory"),
                *_events("/data/d/p/q", "CREATE directory"),
                *_events("/data/d/p/q/r", "CREATE directory"),
                *_events("/data/d/p/q/r/s", "CREATE directory"),
            ),
            8: (
                *_events("/data/d/p/q/x", "DELETE file"),
                *_events("/data/d/p/q/r/s/x", "DELETE file"),
                *_events("/data/d/p/q/r/s", "DELETE_SELF file", "DELETE directory"),
                *_events("/data/d/p/q/r", "DELETE_SELF file", "DELETE directory"),
                *_events("/data/d/p/q", "DELETE_SELF file", "DELETE directory"),
                *_events("/data/d/p", "DELETE_SELF file", "DELETE directory"),
            ),
        },
    ),
    "recursive_only_modify": Override(
        reason="New directories are watched whatever events were asked for.",
        operations={2: _events("/data/d/n/x", "MODIFY file"), 3: _events("/data/d/n/x", "MODIFY file")},
    ),
    "symlink_abs": Override(
        reason="An absolute symlink is followed inside the container, and reported under the path that was given.",
        operations={
            0: _events("/data/ln/x", "CREATE file", "MODIFY file"),
            1: _events("/data/ln/s", "CREATE directory"),
            2: _events("/data/ln/pre", "MODIFY file"),
        },
    ),
    "update_event_mask": Override(
        reason="Every kernel event that was asked for is reported, also the first write to a file just created.",
        operations={2: _events("/data/d/y", "MODIFY file")},
    ),
}

PLACE_REASON: Final = (
    "A subject path is a place, not the file that once stood there: when the file is moved away, the path is quiet "
    "until something stands there again, and what then stands there is watched. When it is another file than before, "
    "that is reported under the path: by the event in its parent, and by MODIFY. The original stayed with the file, or "
    "went deaf."
)

_WRITTEN: Final = ("OPEN file", "MODIFY file", "CLOSE_WRITE file")

A_PATH_IS_A_PLACE: Final[dict[str, Mapping[int, tuple[str, ...]]]] = {
    # The directory /data/d: 15 moved to /data/dm, 16 a write in /data/dm, 17 moved back, 18 a write in it,
    # 19 to 21 removed.
    "event_dir_all": {
        18: _events("/data/d/pre.txt", *_WRITTEN),
        19: _events("/data/d/pre.txt", "DELETE file"),
        20: _events("/data/d/sub", "DELETE directory"),
        21: _events("/data/d", "DELETE_SELF file"),
    },
    "event_dir_modify": {16: ()},
    "event_dir_open": {16: ()},
    # The file /data/f.txt: 8 moved to f2.txt, 9 a write to f2.txt, 10 moved back, 11 a write, 12 g.txt renamed onto it,
    # 13 a write, 14 removed.
    "event_file_all": {
        11: _events("/data/f.txt", *_WRITTEN),
        12: _events("/data/f.txt", "ATTRIB file", "DELETE_SELF file", "MOVED_TO file", "MODIFY file"),
        13: _events("/data/f.txt", *_WRITTEN),
        14: _events("/data/f.txt", "ATTRIB file", "DELETE_SELF file"),
    },
    "event_file_attrib": {14: _events("/data/f.txt", "ATTRIB file")},
    "event_file_closewrite": {9: (), 13: _events("/data/f.txt", "CLOSE_WRITE file")},
    "event_file_deleteself": {14: _events("/data/f.txt", "DELETE_SELF file")},
    "event_file_modify": {
        9: (),
        12: _events("/data/f.txt", "MODIFY file"),
        13: _events("/data/f.txt", "MODIFY file"),
    },
    # A temporary file renamed onto the path, then a write to it.
    "file_replaced_by_rename": {
        2: _events("/data/f", "DELETE_SELF file", "MODIFY file"),
        3: _events("/data/f", "MODIFY file", "CLOSE_WRITE file"),
    },
    # A path that was missing, and one that was removed, are made as directories; then a file is written there.
    "path_nonexistent": {
        0: _events("/data/none", "CREATE directory", "MODIFY directory"),
        1: _events("/data/none/x", "CREATE file", "MODIFY file"),
    },
    "rootdir_deleted": {
        1: _events("/data/d", "CREATE directory"),
        2: _events("/data/d/x", "CREATE file"),
    },
}
"""Lines by recording and operation that ``PLACE_REASON`` asks for; every other step stays as it is."""

AS_RECORDED: Final[dict[str, str]] = {
    "recursive_rename_out": "The recorded lines are right: nothing follows from below the directory that left.",
}
"""``better`` recordings whose recorded lines already are what must happen."""


def in_the_container(line: str) -> str:
    """A recorded line of a guard, with the path as the container sees it.

    The original reported what a process of the host opened under the host's path, which names nothing in the container.
    """
    return line.replace("<ROOT>/", "/")


GUARD_OVERRIDES: Final[dict[str, Override]] = {
    "janus_deny_open_dir": Override(
        reason="What is listed is a directory, as it is in every other recording; the original once said file.",
        operations={3: (f"I <DENY> OPEN_PERM directory '/data/d' {POD} ",)},
    ),
}
