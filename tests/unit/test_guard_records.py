"""The lines of guards: the same encoder as for watches, with a response and without a file name of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from argusd._records import Encoder
from argusd.templates import (
    DEFAULT_GUARD_FORMAT,
    DEFAULT_GUARD_TEMPLATE,
    DEFAULT_WATCH_TEMPLATE,
    GUARD_FIELDS,
    MalformedFormat,
    Template,
    compile_format,
    render,
)
from tests.unit.plain_lines import NAMES, NOON_NS, TAGS, TEXTS, escaped_template, formats, library_line, plain_sanitize

KEYS = [
    "timestamp", "level", "logger", "message", "response", "event", "ftype", "path", "pod", "node", "guard",
    "container", "tags",
]  # fmt: skip


def guard_encoder(
    template: Template = DEFAULT_GUARD_TEMPLATE,
    pod: str = "pod1",
    node: str = "node1",
    tags: Sequence[tuple[str, str]] = (),
) -> Encoder:
    """An encoder of a guard's lines."""
    return Encoder(template.segments, pod, node, "g1", "c" * 64, tags, kind="guard")


@given(formats(GUARD_FIELDS), NAMES, TEXTS, TEXTS, TAGS, st.sampled_from(["ALLOW", "DENY"]))
def test_message_is_what_the_plain_renderer_makes(
    text: str, path: bytes, pod: str, node: str, tags: list[tuple[str, str]], response: str
) -> None:
    try:
        template = compile_format(text, GUARD_FIELDS, DEFAULT_GUARD_FORMAT)
    except MalformedFormat:
        assume(False)
    values = {
        "response": response,
        "event": "OPEN_PERM",
        "ftype": "directory",
        "path": plain_sanitize(path),
        "pod": plain_sanitize(pod.encode()),
        "node": plain_sanitize(node.encode()),
        "tags": ",".join(f"{plain_sanitize(key.encode())}={plain_sanitize(value.encode())}" for key, value in tags),
    }
    message = guard_encoder(template, pod, node, tags).message("OPEN_PERM", "directory", path, response=response)
    assert message.decode() == render(escaped_template(template), values)


@given(NAMES, TEXTS, TAGS, st.sampled_from(["ALLOW", "DENY"]), st.integers(0, 4_000_000_000_000_000))
def test_json_line_is_what_the_daemons_json_formatter_makes(
    path: bytes, pod: str, tags: list[tuple[str, str]], response: str, realtime_us: int
) -> None:
    lines = guard_encoder(pod=pod, tags=tags)
    fields = {
        "response": response,
        "event": "ACCESS_PERM",
        "ftype": "file",
        "path": plain_sanitize(path),
        "pod": plain_sanitize(pod.encode()),
        "node": "node1",
        "guard": "g1",
        "container": "c" * 64,
        "tags": {plain_sanitize(key.encode()): plain_sanitize(value.encode()) for key, value in tags},
    }
    message = lines.message("ACCESS_PERM", "file", path, response=response).decode()
    line = lines.json_line("ACCESS_PERM", "file", path, b"", realtime_us * 1000, response=response)
    assert line == library_line("janusd.events", message, fields, realtime_us * 1000)


@given(NAMES, TEXTS, TAGS)
def test_json_line_is_one_line_of_json_whatever_the_names(path: bytes, pod: str, tags: list[tuple[str, str]]) -> None:
    lines = guard_encoder(pod=pod, tags=tags)
    line = lines.json_line("OPEN_PERM", "file", path, b"", NOON_NS, response="DENY").decode()
    assert line.splitlines() == [line[:-1]]
    record = json.loads(line)
    assert list(record) == KEYS
    assert (record["level"], record["logger"]) == ("INFO", "janusd.events")
    assert (record["response"], record["event"], record["path"]) == ("DENY", "OPEN_PERM", plain_sanitize(path))


def test_text_line_has_the_prefix_of_glog_and_the_default_format() -> None:
    lines = guard_encoder(tags=[("a", "1"), ("b", "2")])
    line = lines.text_line("OPEN_PERM", "file", b"/etc/shadow", b"", NOON_NS, response="DENY").decode()
    match = re.fullmatch(r"I\d{4} \d\d:\d\d:\d\d\.123456 \d+ _fanotify\.pyx:\d+\] (.*)\n", line)
    assert match
    assert match[1] == "<DENY> OPEN_PERM file '/etc/shadow' (pod1:node1) a=1,b=2"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "<DENY> OPEN_PERM file '/a' (pod1:node1) k=v"),
        ("{0}|{1}|{2}|{3}|{4}|{5}|{6}", "DENY|OPEN_PERM|file|/a|pod1|node1|k=v"),
        ("{} {} {} {}", "DENY OPEN_PERM file /a"),
        ("[{response:>6}] {path:.1}", "[  DENY] /"),
    ],
)
def test_fields_count_from_the_response(text: str, line: str) -> None:
    template = compile_format(text, GUARD_FIELDS, DEFAULT_GUARD_FORMAT)
    encoder = guard_encoder(template, tags=[("k", "v")])
    assert encoder.message("OPEN_PERM", "file", b"/a", response="DENY").decode() == line


@pytest.mark.parametrize("text", ["{file}", "{sep}", "{7}", "{}" * 8])
def test_a_guard_has_no_file_and_no_separator(text: str) -> None:
    with pytest.raises(MalformedFormat, match="argument not found"):
        compile_format(text, GUARD_FIELDS, DEFAULT_GUARD_FORMAT)


def test_a_template_of_the_other_kind_is_refused() -> None:
    with pytest.raises(KeyError):
        Encoder(DEFAULT_WATCH_TEMPLATE.segments, "p", "n", "g", "c", [], kind="guard")
    with pytest.raises(KeyError):
        Encoder(DEFAULT_GUARD_TEMPLATE.segments, "p", "n", "w", "c", [], kind="watcher")


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="'rule'"):
        Encoder(DEFAULT_GUARD_TEMPLATE.segments, "p", "n", "g", "c", [], kind="rule")  # type: ignore[arg-type]
