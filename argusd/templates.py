"""A user's logFormat, compiled once into the segments that the native encoder fills in for each event.

The syntax is that of the {fmt} library for string arguments, and so are the messages: operators know them from the
log of earlier versions. Nothing is ever looked up on an object, so a format can reach the named fields only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NoReturn, TypeAlias

__all__ = [
    "DEFAULT_GUARD_FORMAT",
    "DEFAULT_GUARD_TEMPLATE",
    "DEFAULT_WATCH_FORMAT",
    "DEFAULT_WATCH_TEMPLATE",
    "GUARD_FIELDS",
    "WATCH_FIELDS",
    "MalformedFormat",
    "Segment",
    "Template",
    "compile_format",
    "render",
]

WATCH_FIELDS: Final = ("event", "ftype", "path", "file", "sep", "pod", "node", "tags")
"""What a watch's format may name, in the order in which ``{}`` and ``{0}`` count."""

DEFAULT_WATCH_FORMAT: Final = "{event} {ftype} '{path}{sep}{file}' ({pod}:{node}) {tags}"

GUARD_FIELDS: Final = ("response", "event", "ftype", "path", "pod", "node", "tags")
"""What a guard's format may name, in the same way."""

DEFAULT_GUARD_FORMAT: Final = "<{response}> {event} {ftype} '{path}' ({pod}:{node}) {tags}"

# A line is encoded for each event, on the reader thread: a format must not be able to make that slow or the line huge.
_MAX_FORMAT_BYTES: Final = 4096
_MAX_REPLACEMENT_FIELDS: Final = 64
_MAX_WIDTH: Final = 1024  # and precision

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z_0-9]*", re.ASCII)
_DIGITS: Final = re.compile(r"[0-9]+", re.ASCII)
_ALIGNMENTS: Final = frozenset("<^>")
_NUMERIC_FLAGS: Final = frozenset("+- #0")
_INT_MAX_DIGITS: Final = 10

Segment: TypeAlias = bytes | tuple[str, bytes, str, int, int]
"""Literal text in UTF-8, or ``(field, fill, align, width, precision)``; width 0 and precision -1 mean none."""


class MalformedFormat(ValueError):  # noqa: N818  (the word of the operator's message)
    """The format cannot be used; ``str()`` says why, in the words of {fmt}."""


@dataclass(frozen=True, slots=True)
class Template:
    """A compiled format. Templates that make the same lines are equal, however they were written."""

    segments: tuple[Segment, ...]
    source: str = field(compare=False)


def compile_format(text: str, fields: Sequence[str] = WATCH_FIELDS, default: str = DEFAULT_WATCH_FORMAT) -> Template:
    """Compile ``text``, or ``default`` when it is empty; ``fields`` are the arguments in order.

    Raises MalformedFormat.
    """
    source = text or default
    if len(source.encode()) > _MAX_FORMAT_BYTES:
        raise MalformedFormat(f"format string is longer than {_MAX_FORMAT_BYTES} bytes")
    return Template(_Parser(source, fields).parse(), source)


class _Parser:
    """Reads one format from left to right, as {fmt} does, so that the first mistake is the one that is named."""

    def __init__(self, text: str, fields: Sequence[str]) -> None:
        self._text = text
        self._fields = fields
        self._at = 0
        self._automatic = 0  # how many fields were counted with {}
        self._manual = False  # a field was named by its number
        self._replacements = 0

    def parse(self) -> tuple[Segment, ...]:
        segments: list[Segment] = []
        literal = ""
        while self._at < len(self._text):
            brace = self._find_brace()
            literal += self._text[self._at : brace]
            self._at = brace + 1
            if brace == len(self._text):
                break
            if self._next() == self._text[brace]:  # {{ or }}
                literal += self._text[brace]
                self._at += 1
            elif self._text[brace] == "}":
                _malformed("unmatched '}' in format string")
            else:
                if literal:
                    segments.append(literal.encode())
                    literal = ""
                segments.append(self._replacement_field())
        if literal:
            segments.append(literal.encode())
        return tuple(segments)

    def _find_brace(self) -> int:
        """Where the next brace is, or the end of the text."""
        found = [at for at in (self._text.find("{", self._at), self._text.find("}", self._at)) if at >= 0]
        return min(found, default=len(self._text))

    def _next(self) -> str:
        """The next character, or nothing at the end."""
        return self._text[self._at : self._at + 1]

    def _replacement_field(self) -> Segment:
        """Read from behind ``{`` to behind ``}``."""
        if not self._next():
            _malformed("invalid format string")
        self._replacements += 1
        if self._replacements > _MAX_REPLACEMENT_FIELDS:
            _malformed(f"more than {_MAX_REPLACEMENT_FIELDS} replacement fields in format string")
        index = self._argument()
        after = self._next()
        if after not in {"}", ":"}:  # also `!r`, `.name`, `[0]` and the end of the text
            _malformed("missing '}' in format string")
        if index >= len(self._fields):
            _malformed("argument not found")
        self._at += 1
        specification = (" ", "<", 0, -1) if after == "}" else self._specification()
        fill, align, width, precision = specification
        return (self._fields[index], fill.encode(), align, width, precision)

    def _argument(self) -> int:
        """The number of the argument that is named next, which may be out of range."""
        character = self._next()
        if character in {"}", ":"}:
            if self._manual:
                _malformed("cannot switch from manual to automatic argument indexing")
            self._automatic += 1
            return self._automatic - 1
        if _DIGITS.match(character):
            return self._numbered_argument(character)
        name = _NAME.match(self._text, self._at)
        if name is None:
            _malformed("invalid format string")
        if name.group() not in self._fields:
            _malformed("argument not found")
        self._at = name.end()
        return self._fields.index(name.group())

    def _numbered_argument(self, first: str) -> int:
        if first == "0":  # a number does not begin with 0
            self._at += 1
            index = 0
        else:
            index = self._number()
        if self._next() not in {"}", ":"}:
            _malformed("invalid format string")
        if self._automatic:
            _malformed("cannot switch from automatic to manual argument indexing")
        self._manual = True
        return index

    def _specification(self) -> tuple[str, str, int, int]:
        """Fill, align, width and precision, from behind ``:`` to behind ``}``."""
        fill, align = self._alignment()
        if self._next() and self._next() in _NUMERIC_FLAGS:
            _malformed("format specifier requires numeric argument")
        width = self._limited_number() if _DIGITS.match(self._next()) else self._refuse_nested("width", 0)
        precision = -1
        if self._next() == ".":
            self._at += 1
            if _DIGITS.match(self._next()):
                precision = self._limited_number()
            else:
                self._refuse_nested("precision", -1)
                _malformed("missing precision specifier")
        kind = self._next()
        if kind and kind != "}":
            self._at += 1
        if self._next() != "}":
            _malformed("missing '}' in format string")
        if kind not in {"}", "s"}:
            _malformed("invalid type specifier")
        self._at += 1
        return fill, align, width, precision

    def _alignment(self) -> tuple[str, str]:
        fill, align = self._text[self._at : self._at + 1], self._text[self._at + 1 : self._at + 2]
        if fill != "}" and align and align in _ALIGNMENTS:
            if fill == "{":
                _malformed("invalid fill character '{'")
            self._at += 2
            return fill, align
        if fill and fill in _ALIGNMENTS:
            self._at += 1
            return " ", fill
        return " ", "<"

    def _refuse_nested(self, what: str, absent: int) -> int:
        """Refuse ``{…}`` where a number belongs: it would name an argument, and all of ours are strings."""
        if self._next() == "{":
            self._at += 1
            if not self._next() or (self._argument() >= 0 and self._next() != "}"):
                _malformed("invalid format string")
            _malformed(f"{what} is not integer")
        return absent

    def _limited_number(self) -> int:
        number = self._number()
        if number > _MAX_WIDTH:
            _malformed("number is too big")
        return number

    def _number(self) -> int:
        match = _DIGITS.match(self._text, self._at)
        if match is None or len(match.group().lstrip("0")) > _INT_MAX_DIGITS or int(match.group()) >= 2**31:
            _malformed("number is too big")
        self._at = match.end()
        return int(match.group())


def _malformed(reason: str) -> NoReturn:
    raise MalformedFormat(reason)


def render(template: Template, values: Mapping[str, str]) -> str:
    """Fill in a template slowly and plainly; width and precision count code points.

    The lines of the daemon come from the native encoder: this is what its tests compare it with.
    """
    parts: list[str] = []
    for segment in template.segments:
        if isinstance(segment, bytes):
            parts.append(segment.decode())
            continue
        name, fill, align, width, precision = segment
        value = values[name] if precision < 0 else values[name][:precision]
        missing = max(0, width - len(value))
        before = {"<": 0, "^": missing // 2, ">": missing}[align]
        parts.append(fill.decode() * before + value + fill.decode() * (missing - before))
    return "".join(parts)


DEFAULT_WATCH_TEMPLATE: Final = compile_format(DEFAULT_WATCH_FORMAT)
DEFAULT_GUARD_TEMPLATE: Final = compile_format(DEFAULT_GUARD_FORMAT, GUARD_FIELDS, DEFAULT_GUARD_FORMAT)
