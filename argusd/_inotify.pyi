"""The watch engine: inotify, the directory trees, and the thread that turns kernel events into lines and counts."""

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple, final

from argusd._fanotify import Guards
from argusd._output import Output
from argusd._records import Encoder

EVENTS: Final[dict[str, int]]
"""Kernel event bits by reported name, in the order of the kernel's bits: ``{"ACCESS": IN_ACCESS, …}``."""
COUNTED: Final[tuple[str, ...]]
"""Names as RecordMetrics sends them, by the event index of :meth:`Engine.drain_counts`; the last is ``q_overflow``."""

class Notice(NamedTuple):
    """Something that the operator must hear of. ``kind`` is one of the words in the ``Engine.notices`` docstring."""

    kind: str
    subscription: int
    errno: int
    number: int
    path: str

class Armed(NamedTuple):
    """What arming a subscription did: per subject path 0 or the errno that kept it from being watched.

    ``unreadable`` is the first directory below one that the kernel denied (EACCES), in the container's words; or empty.
    """

    errors: tuple[int, ...]
    directories: int
    seconds: float
    unreadable: str = ...

class DeniedError(PermissionError):
    """The container is closed to the daemon."""

    step: Literal["root", "enter"]
    """``root``: the kernel does not let us see the process' root; ``enter``: nor go there (only the way ``setns``)."""

@final
class Engine:
    """One inotify instance, its reader thread, and the trees of every subscription.

    All methods may be called from any thread; none holds the GIL while it waits.
    """

    def __init__(
        self, output: Output, enter: str = "auto", sysctl_fd: int = -1, queued_events: int = 0, watch_share: int = 0
    ) -> None:
        """``enter`` is the way into containers: ``openat2``, ``setns``, or ``auto``: setns where openat2(2) is missing.

        ``sysctl_fd`` is a descriptor of fs.inotify.max_queued_events, which is raised to ``queued_events`` for the
        moment in which the instance is made, if that is more. ``watch_share`` is the percent of the user's watches that
        one container may have; 0 is any number.

        Raises OSError: EMFILE (fs.inotify.max_user_instances) when the kernel gives no inotify instance, and what
        openat2(2) answered when it is wanted and missing.
        """
    @property
    def enter(self) -> Literal["openat2", "setns"]:
        """The way into containers that is taken."""
    @property
    def queue(self) -> tuple[int, int]:
        """How many events the kernel keeps for the instance (0: not known), and the errno that keeps it from more.

        The errno is negative when the sysctl was raised and could not be put back.
        """
    def start(self) -> None:
        """Start the reader thread."""
    def fileno(self) -> int:
        """An eventfd that is readable when counts or notices wait. Read it with :meth:`acknowledge`."""
    def acknowledge(self) -> None:
        """Reset the eventfd."""
    def want_counts(self, wanted: bool) -> None:
        """Whether counts are to make the eventfd readable (the default); they are kept all the same."""
    def subscribe(
        self,
        encoder: Encoder,
        counter: int,
        pid: int,
        pidfd: int,
        paths: Sequence[bytes],
        mask: int,
        ignore: Sequence[bytes],
        only_dir: bool,
        recursive: bool,
        max_depth: int,
        follow_move: bool,
    ) -> int:
        """Register one subject in one container, silent and unarmed; returns its number (never used again).

        ``pid`` is the container's init, ``pidfd`` holds it (duplicated here; the caller keeps its own). A descriptor
        of the folder ``/proc/PID`` will do where the kernel has no pidfds.
        """
    def guard(
        self,
        guards: Guards,
        encoder: Encoder,
        pid: int,
        pidfd: int,
        deny: Sequence[bytes],
        allow: Sequence[bytes],
        mask: int,
        only_dir: bool,
        auto_allow_owner: bool,
        audit: bool,
    ) -> int:
        """Register one guard subject in one container, without effect yet; returns its number, as ``subscribe`` does.

        ``mask`` is of ``argusd._fanotify.EVENTS``; ``guards`` is always the same. Raises GuardError (init, audit).
        """
    def arm(self, subscription: int) -> Armed:
        """Watch the subject's paths and, when it is recursive, the directories below.

        Of a guard: mark its paths, those to be denied first, and see that an open of each is noticed. Raises
        GuardError (mark, check) when a path that is there cannot be guarded.

        Blocks for as long as the walk takes, which a native thread does; call it from a thread that may wait. Stops
        early when the subscription is cancelled by ``switch``. Raises OSError ENOSPC or ENOMEM when the kernel has no
        more watches to give, ProcessLookupError when the container's process has ended,
        DeniedError when its root is closed to us.
        """
    def walked(self, subscription: int) -> tuple[int, int] | None:
        """How many directories were armed, and which of the paths :meth:`arm` is at; None when it is not under way.

        Never waits.
        """
    def switch(self, on: Sequence[int], off: Sequence[int]) -> bool:
        """In one step for the reader: subscriptions ``on`` begin to report or to guard, ``off`` stop and are freed.

        True when a walk still holds some that have stopped: they are freed by a later call.
        """
    def new_counter(self) -> int:
        """A new set of event counts; several subscriptions may share one."""
    def free_counter(self, counter: int) -> None:
        """Give a set of counts back. No live subscription may use it."""
    def drain_counts(self) -> list[tuple[int, int, int]]:
        """``(counter, event index, events)`` for what was counted since the last call, and start from 0 again."""
    def notices(self) -> list[Notice]:
        """Take the waiting notices.

        ``overflow`` the kernel queue overflowed; ``limit`` a directory that appeared could not be watched (errno);
        ``depth`` a tree is deeper than can be watched (number: the limit).
        ``beyond`` a followed file was moved to where its path is too long to be used (path: the one before);
        ``mounts`` a container has more mounts than are looked at (number: the limit, in bytes of mountinfo);
        ``share`` a container has all the watches that it may have (number); what is at the path, and more, waits;
        ``watched`` all of a container is watched again that could not be (number: directories and subject paths);
        ``dropped`` more notices came than are kept (number); ``forgotten`` memory ran out for what was to be done
        (number), so all is looked at again, as after an overflow.
        ``unguarded`` what a guarded path has come to stand for cannot be guarded (errno);
        ``foreign`` a guarded path leads, by a link, to files of the node that the container only sees;
        ``root`` process 1 (number: its pid) has left the root that is watched and guarded.
        """
    def statistics(self) -> dict[str, int]:
        """Counters since the start (``reads events lines overflows``) and what there is now.

        That is ``watches nodes``, and in ``waiting`` the directories and subject paths that could not be watched and
        are tried again.
        """
    def settled(self) -> bool:
        """Whether everything that the kernel has told so far is handled, listings of new directories included."""
    def close(self, drain_s: float = ...) -> None:
        """Report what the kernel has queued already, stop the reader, close every descriptor. May be called twice."""
