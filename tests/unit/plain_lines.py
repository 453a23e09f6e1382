"""Lines as slow, plain Python makes them, to compare the native encoder with; and names as an attacker chooses."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Mapping, Sequence

from hypothesis import strategies as st

from argusd.logs import LineHandler
from argusd.templates import Template

NOON_NS = 1_795_262_400_123_456_000
BIDI = {0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)}
"""The Bidi_Control characters (Unicode's PropList.txt)."""

# Bytes as an attacker would choose them: text, broken text, and pieces of the characters that must not get through.
PIECES = st.sampled_from([
    *(chr(code).encode() for code in (*range(0x20), 0x7F, 0x85, 0x9B, 0x061C, 0x200F, 0x2028, 0x202E, 0x2066, 0xFEFF)),
    b'"', b"\\", b"\\n", b'","level":"ERROR', b"\x1b[31m", b"\xe2\x80", b"\xf0\x9f\x98\x80", b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80", b"\xc0\xaf", "ä€".encode(), b"I1218 14:03:22.123456 1 f:1] ",
])  # fmt: skip
NAMES = st.binary(max_size=60) | st.lists(PIECES | st.binary(max_size=4), max_size=12).map(b"".join)
TEXTS = NAMES.map(lambda name: name.decode(errors="ignore")) | st.text(st.characters(codec="utf-8"), max_size=20)
TAGS = st.dictionaries(TEXTS, TEXTS, max_size=4).map(lambda tags: sorted(tags.items()))


def formats(fields: Sequence[str]) -> st.SearchStrategy[str]:
    """Formats that name ``fields``, and texts that look like formats."""
    specifications = st.builds(
        lambda name, fill, align, width, precision, kind: (
            "{" + name + ":" + fill + align + width + precision + kind + "}"
        ),
        st.sampled_from(fields),
        st.sampled_from(["", "*", "ä", "😀", "\n", " "]),
        st.sampled_from("<^>"),
        st.sampled_from(["", "1", "7", "40"]),
        st.sampled_from(["", ".0", ".1", ".5", ".30"]),
        st.sampled_from(["", "s"]),
    )
    plain = [f"{{{name}}}" for name in fields] + ["{{", "}}", " ", "-", "€\n", "a'\"\\"]
    made = st.lists(specifications | st.sampled_from(plain), max_size=10).map("".join)
    return made | st.text("{}:<>^.s0123 ab€\n", max_size=20)


def plain_sanitize(name: bytes) -> str:
    """Escape one character after another, as the contract says it."""
    return "".join(_escaped(char) for char in name.decode(errors="surrogateescape"))


def _escaped(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if char in "\n\r\t":
        return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}[char]
    if code < 0x80 and unicodedata.category(char) == "Cc":
        return f"\\x{code:02x}"
    if code in BIDI or unicodedata.category(char) in {"Cc", "Zl", "Zp"}:
        return f"\\u{code:04x}"
    return char


def escaped_template(template: Template) -> Template:
    """The template as a line may hold it: its own text is the user's, and is escaped as well."""
    segments = tuple(
        plain_sanitize(segment).encode()
        if isinstance(segment, bytes)
        else (segment[0], segment[1] if plain_sanitize(segment[1]).encode() == segment[1] else b"?", *segment[2:])
        for segment in template.segments
    )
    return Template(segments, template.source)


class KeptLine:
    """A sink that keeps the JSON form of the last record."""

    def __init__(self) -> None:
        self.json_line = b""

    def write(self, json_line: bytes, text_line: bytes, colour_line: bytes) -> None:
        """Keep one of the forms."""
        del text_line, colour_line
        self.json_line = json_line


def library_line(logger: str, message: str, fields: Mapping[str, object], realtime_ns: int) -> bytes:
    """The line that python-json-logger makes in the daemon's own log of a record with these fields."""
    kept = KeptLine()
    record = logging.makeLogRecord({"name": logger, "levelno": logging.INFO, "msg": message, **fields})
    record.created = realtime_ns / 1e9
    LineHandler(kept).emit(record)
    return kept.json_line
