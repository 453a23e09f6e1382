"""The line of an event, encoded natively."""

from collections.abc import Sequence
from typing import Literal, final

def sanitize(name: bytes) -> bytes:
    r"""Bytes from a file system as printable UTF-8: other bytes become ``\xNN``, control characters are escaped."""

@final
class Encoder:
    """Everything of one subscription's lines that does not change from event to event.

    ``segments`` is a compiled logFormat: a ``bytes`` is literal text, a tuple is
    ``(field, fill, align, width, precision)``, ``fill`` one UTF-8 character, ``align`` one of ``"<" "^" ">"``,
    ``width`` 0 for none, ``precision`` -1 for none. ``field`` is one of ``event ftype path file sep pod node tags`` on
    the lines of a watcher, of ``response event ftype path pod node tags`` on those of a guard; ``name`` is what the
    one or the other is called. ``tags`` are sorted pairs.
    """

    def __init__(
        self,
        segments: Sequence[bytes | tuple[str, bytes, str, int, int]],
        pod: str,
        node: str,
        name: str,
        container: str,
        tags: Sequence[tuple[str, str]],
        kind: Literal["watcher", "guard"] = ...,
    ) -> None: ...
    def message(self, event: str, ftype: str, path: bytes, file: bytes = ..., response: str = ...) -> bytes:
        """The text of one event."""
    def json_line(
        self, event: str, ftype: str, path: bytes, file: bytes, realtime_ns: int, response: str = ...
    ) -> bytes:
        """The JSON line of one event, with its newline."""
    def text_line(
        self, event: str, ftype: str, path: bytes, file: bytes, realtime_ns: int, response: str = ...
    ) -> bytes:
        """The glog text line of one event, with its newline."""
