"""logFormat: the syntax of {fmt} for strings, its messages, and nothing more."""

from __future__ import annotations

import string
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from argusd.templates import (
    DEFAULT_WATCH_FORMAT,
    DEFAULT_WATCH_TEMPLATE,
    WATCH_FIELDS,
    MalformedFormat,
    compile_format,
    render,
)

VALUES = {
    "event": "CREATE",
    "ftype": "file",
    "path": "/data/d",
    "file": "x",
    "sep": "/",
    "pod": "pod1",
    "node": "node1",
    "tags": "k=v",
}


def reason(text: str) -> str:
    """Why ``text`` is malformed."""
    with pytest.raises(MalformedFormat) as caught:
        compile_format(text, WATCH_FIELDS)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "CREATE file '/data/d/x' (pod1:node1) k=v"),
        ("{event}|{ftype}|{path}|{sep}|{file}|{pod}|{node}|{tags}", "CREATE|file|/data/d|/|x|pod1|node1|k=v"),
        ("plain text", "plain text"),
        ("{}", "CREATE"),
        ("{0}", "CREATE"),
        ("{} {} {event} {}", "CREATE file CREATE /data/d"),
        ("{7} {0} {0}", "k=v CREATE CREATE"),
        ("{event:>20}|", "              CREATE|"),
        ("{event:<12}|{ftype:^15}|", "CREATE      |     file      |"),
        ("{event:*^9}|{ftype:^7}", "*CREATE**| file  "),
        ("{event:8}|{event:8s}|{event:}|{event:s}|{:}", "CREATE  |CREATE  |CREATE|CREATE|CREATE"),
        ("{event:.2}|{event:.0s}|{event:4.1s}|{event:2}", "CR||C   |CREATE"),
        ("{event:é>8}{event:<<7}{event:=>7}{event:0>7}", "ééCREATECREATE<=CREATE0CREATE"),
        ("{event:s>7}{event:.>7}{event:{{", "invalid"),
        ("{{}} {{{event}}} }}{{", "{} {CREATE} }{"),
        ("\N{SNOWMAN}{event}\N{SNOWMAN}", "\N{SNOWMAN}CREATE\N{SNOWMAN}"),
    ],
)
def test_lines(text: str, line: str) -> None:
    if line == "invalid":
        assert reason(text)
    else:
        assert render(compile_format(text, WATCH_FIELDS), VALUES) == line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # As the original daemon logged them.
        ("{nope}", "argument not found"),
        ("{event", "missing '}' in format string"),
        ("event}", "unmatched '}' in format string"),
        ("}", "unmatched '}' in format string"),
        ("{", "invalid format string"),
        ("{event!r}", "missing '}' in format string"),
        # The same rules elsewhere.
        ("{}}", "unmatched '}' in format string"),
        ("}{", "unmatched '}' in format string"),
        ("{event.__class__}", "missing '}' in format string"),
        ("{event[0]}", "missing '}' in format string"),
        ("{event }", "missing '}' in format string"),
        ("{0.real}", "invalid format string"),
        ("{ event}", "invalid format string"),
        ("{!r}", "invalid format string"),
        ("{-1}", "invalid format string"),
        ("{01}", "invalid format string"),
        ("{0x}", "invalid format string"),
        ("{é}", "invalid format string"),
        ("{٣}", "invalid format string"),
        ("{response}", "argument not found"),
        ("{nope!r}", "argument not found"),
        ("{nope", "argument not found"),
        ("{8}", "argument not found"),
        ("{}" * 9, "argument not found"),
        ("{2147483648}", "number is too big"),
        ("{" + "9" * 4000 + "}", "number is too big"),
        ("{0}{}", "cannot switch from manual to automatic argument indexing"),
        ("{}{0}", "cannot switch from automatic to manual argument indexing"),
        ("{event:", "missing '}' in format string"),
        ("{event:5", "missing '}' in format string"),
        ("{event:ss}", "missing '}' in format string"),
        ("{event:s5}", "missing '}' in format string"),
        ("{event:٣}", "invalid type specifier"),
        ("{event:d}", "invalid type specifier"),
        ("{event:x}", "invalid type specifier"),
        ("{event:c}", "invalid type specifier"),
        ("{event:?}", "invalid type specifier"),
        ("{event:p}", "invalid type specifier"),
        ("{event:L}", "invalid type specifier"),
        ("{event:+}", "format specifier requires numeric argument"),
        ("{event:-}", "format specifier requires numeric argument"),
        ("{event: }", "format specifier requires numeric argument"),
        ("{event:#}", "format specifier requires numeric argument"),
        ("{event:05}", "format specifier requires numeric argument"),
        ("{event:{<5}", "invalid fill character '{'"),
        ("{event:{}}", "width is not integer"),
        ("{event:{ftype}}", "width is not integer"),
        ("{event:{nope}}", "argument not found"),
        ("{event:{", "invalid format string"),
        ("{event:{0", "invalid format string"),
        ("{event:.{}}", "precision is not integer"),
        ("{event:.}", "missing precision specifier"),
        ("{event:.s}", "missing precision specifier"),
        ("{event:1025}", "number is too big"),
        ("{event:.1025}", "number is too big"),
        ("{event:99999999999999999999}", "number is too big"),
        ("{event}" * 65, "more than 64 replacement fields in format string"),
        ("x" * 4097, "format string is longer than 4096 bytes"),
        ("é" * 2049, "format string is longer than 4096 bytes"),
    ],
)
def test_a_malformed_format_is_explained_as_fmt_does(text: str, expected: str) -> None:
    assert reason(text) == expected


def test_bounds_are_inclusive() -> None:
    assert compile_format("{event:1024.1024}" * 64, WATCH_FIELDS).segments[63] == ("event", b" ", "<", 1024, 1024)
    assert compile_format("é" * 2048, WATCH_FIELDS).segments == ("é".encode() * 2048,)


def test_segments_are_what_the_encoder_takes() -> None:
    template = compile_format("a{{b{event:é^7.3}c}}", WATCH_FIELDS)
    assert template.segments == (b"a{b", ("event", "é".encode(), "^", 7, 3), b"c}")
    assert template.source == "a{{b{event:é^7.3}c}}"
    assert compile_format("{}", ("response", "event")).segments == (("response", b" ", "<", 0, -1),)


def test_an_empty_format_is_the_default() -> None:
    assert compile_format("", WATCH_FIELDS) == DEFAULT_WATCH_TEMPLATE
    assert compile_format("", ("a",), "<{a}>").segments == (b"<", ("a", b" ", "<", 0, -1), b">")
    assert DEFAULT_WATCH_TEMPLATE.source == DEFAULT_WATCH_FORMAT


def test_formats_that_mean_the_same_are_equal() -> None:
    assert compile_format("{}", WATCH_FIELDS) == compile_format("{event:s}", WATCH_FIELDS)
    assert compile_format("{}", WATCH_FIELDS) != compile_format("{1}", WATCH_FIELDS)


CHARACTERS = st.characters(exclude_categories=["Cs"])
LITERALS = st.text(CHARACTERS.filter(lambda c: c not in "{}"))
SPECIFICATIONS = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(["", "<", "^", ">"])
    | st.builds("{}{}".format, CHARACTERS.filter(lambda c: c not in "{}"), st.sampled_from("<^>")),
    st.just("") | st.integers(1, 1024),
    st.just("") | st.integers(0, 1024).map(".{}".format),
    st.sampled_from(["", "s"]),
)  # fmt: skip
REPLACEMENTS = st.builds(
    "{{{}{}}}".format, st.sampled_from(WATCH_FIELDS), st.just("") | SPECIFICATIONS.map(":{}".format)
)


@given(
    st.lists(LITERALS | REPLACEMENTS | st.sampled_from(["{{", "}}"]), max_size=20).map("".join),
    st.fixed_dictionaries(dict.fromkeys(WATCH_FIELDS, st.text(CHARACTERS, max_size=40))),
)
def test_agrees_with_python_where_the_syntaxes_agree(text: str, values: dict[str, str]) -> None:
    if len(text.encode()) <= 4096:
        assert render(compile_format(text or "{{", WATCH_FIELDS), values) == (text or "{{").format(**values)


@given(st.text(CHARACTERS) | st.text("{}:<>^.s05e1!" + string.ascii_lowercase))
@example("{:}<5}")
@example("{:{{}}}")
def test_any_text_compiles_or_is_malformed(text: str) -> None:
    try:
        template = compile_format(text, WATCH_FIELDS)
    except MalformedFormat as error:
        assert str(error)  # noqa: PT017  (either outcome is right)
    else:
        render(template, VALUES)
        literals = [isinstance(segment, bytes) for segment in template.segments]
        assert (True, True) not in pairwise(literals)
        assert b"" not in template.segments
