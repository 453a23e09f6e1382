"""Guards: fanotify permission events, and the threads that answer them and tell about it."""

from typing import Final, Literal, final

from argusd._output import Output

EVENTS: Final[dict[str, int]]
"""Kernel event bits by reported name: ``{"OPEN_PERM": FAN_OPEN_PERM, "ACCESS_PERM": FAN_ACCESS_PERM}``."""

class GuardError(OSError):
    """A guard cannot stand. ``filename`` is the subject path where there is one."""

    step: Literal["init", "audit", "mark", "check", "kind"]
    """``init``: fanotify_init(2) failed; ``audit``: it does with FAN_ENABLE_AUDIT; ``mark``: fanotify_mark(2) failed;
    ``check``: the mark stands, but our own open of the path was not seen; ``kind``: it is no file and no directory.
    """

@final
class Guards:
    """The permission groups, a responder thread for each, and the reporter thread.

    Guards are made by ``Engine.guard``, which looks their paths up. The reporter writes to the sinks that ``output``
    has by now.
    """

    def __init__(self, output: Output) -> None:
        """Groups are made when they are first needed: after the inotify instance, see guarding/guards.pyx.

        Raises OSError when there can be no thread.
        """
    def statistics(self) -> dict[str, int]:
        """Counters since the start and what there is now.

        ``allowed`` and ``denied`` answers that were told about, ``lines`` of them, ``dropped`` lines that were not made
        in time, ``failed`` events that the kernel could not hand over and so denied; ``groups``, ``guards``, and
        ``strays``: marks that could not be taken away yet.
        """
    def notices(self) -> list[tuple[Literal["dropped", "failed", "broken"], int]]:
        """What the operator must hear of since the last call, with how many.

        ``broken``: the kernel gave something that is not understood; the group was closed, so that nobody waits for it.
        """
    def close(self, drain_s: float = ...) -> None:
        """Let everything through that waits, end the threads, write the last lines. May be called twice.

        Comes before ``Engine.close``: a process that waits for an answer may hold up the end of an inotify instance.
        """
