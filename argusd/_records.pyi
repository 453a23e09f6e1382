"""The line of an event, encoded natively."""

from collections.abc import Sequence
from typing import final

def sanitize(name: bytes) -> bytes:
    r"""Bytes from a file system as printable UTF-8: other bytes become ``\xNN``, control characters are escaped."""

@final
class Encoder:
    """Everything of one subscription's lines that does not change from event to event.

    ``segments`` is a compiled logFormat: a ``bytes`` is literal text, a tuple is
    ``(field, fill, align, width, precision)`` with ``field`` one of ``event ftype path file sep pod node tags``,
    ``fill`` one UTF-8 character, ``align`` one of ``"<" "^" ">"``, ``width`` 0 for none, ``precision`` -1 for none.
    ``tags`` are sorted pairs.
    """

    def __init__(
        self,
        segments: Sequence[bytes | tuple[str, bytes, str, int, int]],
        pod: str,
        node: str,
        watcher: str,
        container: str,
        tags: Sequence[tuple[str, str]],
    ) -> None: ...
    def message(self, event: str, ftype: str, path: bytes, file: bytes) -> bytes:
        """The text of one event."""
    def json_line(self, event: str, ftype: str, path: bytes, file: bytes, realtime_ns: int) -> bytes:
        """The JSON line of one event, with its newline."""
    def text_line(self, event: str, ftype: str, path: bytes, file: bytes, realtime_ns: int) -> bytes:
        """The glog text line of one event, with its newline."""
