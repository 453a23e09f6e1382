"""Bounded line buffers with one native writer thread per sink."""

from typing import Final, final

JSON: Final[int]
TEXT: Final[int]
COLOUR: Final[int]

@final
class Source:
    """Something that makes lines, such as a container: it has a share of the room in each sink, and no more."""

    def __init__(self, label: bytes) -> None:
        """``label`` is what to call it, without control characters, where its lines were dropped."""

@final
class Output:
    """Where log lines go: any number of sinks, none of which can block a producer.

    A sink that is full drops lines, counts them, and says so in a WARNING line as soon as it has room. What a file
    cannot take is lost, counted, and told to the other sinks at once.
    """

    def add_descriptor(self, fd: int, style: int, capacity_bytes: int = ...) -> None:
        """Write lines in ``style`` (JSON, TEXT or COLOUR) to ``fd``, which stays the caller's."""
    def add_file(self, path: str, max_bytes: int, backups: int, capacity_bytes: int = ...) -> None:
        """Append text lines to ``path``; at ``max_bytes`` it becomes ``path.1`` and so on up to ``backups``.

        When somebody removes the file or moves it away, the next line goes into a new one.
        Raises OSError when the file cannot be created, or is not a plain file of our own with one name.
        """
    def write(self, json_line: bytes, text_line: bytes, colour_line: bytes) -> None:
        """Queue one finished line (with its newline) in each sink's own style."""
    def flush(self, timeout_s: float) -> bool:
        """Wait until everything queued so far is written; False when that took too long."""
    def dropped(self) -> int:
        """How many lines were dropped in all sinks since the start."""
    def close(self, timeout_s: float = ...) -> bool:
        """Write what is queued and stop the writers. May be called twice."""
