"""An inotify instance for a few directories: which names come, which go."""

from typing import Final

COME: Final[int]
"""In an event's mask: a name has come."""
ENDED: Final[int]
"""In an event's mask: the directory itself has gone, or was removed; its number means nothing any more."""
OVERFLOW: Final[int]
"""In an event's mask: events were lost."""

class Directories:
    """Owns the instance; for one thread. Raises OSError when the kernel has none to give."""

    def __init__(self) -> None: ...
    def fileno(self) -> int:
        """Return the descriptor, readable when :meth:`read` has events."""

    def add(self, path: bytes) -> int:
        """Watch a directory; returns its number. Raises OSError."""

    def remove(self, wd: int) -> None:
        """Stop watching a directory."""

    def read(self) -> list[tuple[int, int, bytes]]:
        """Return what has happened, a part at a time, as (number, mask, name); does not block."""

    def close(self) -> None:
        """Close the instance. May be called twice."""
