"""The native line encoder against slow, plain Python: the same bytes, and no way to forge a line."""

from __future__ import annotations

import json
import os
import re
import threading
import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from argusd._records import Encoder, sanitize
from argusd.templates import DEFAULT_WATCH_TEMPLATE, WATCH_FIELDS, MalformedFormat, Template, compile_format, render
from tests.unit.plain_lines import (
    BIDI,
    NAMES,
    NOON_NS,
    TAGS,
    TEXTS,
    escaped_template,
    formats,
    library_line,
    plain_sanitize,
)


def encoder(
    template: Template = DEFAULT_WATCH_TEMPLATE,
    pod: str = "pod1",
    node: str = "node1",
    watcher: str = "w1",
    container: str = "c" * 64,
    tags: Sequence[tuple[str, str]] = (),
) -> Encoder:
    """An encoder with a line's fixed parts."""
    return Encoder(template.segments, pod, node, watcher, container, tags)


@pytest.mark.parametrize("byte", range(256))
def test_every_single_byte_is_escaped_or_printable_ascii(byte: int) -> None:
    clean = sanitize(bytes([byte]))
    if 0x20 <= byte < 0x7F:
        assert clean == bytes([byte])
    else:
        special = {0x09: b"\\t", 0x0A: b"\\n", 0x0D: b"\\r"}
        assert clean == special.get(byte, b"\\x%02x" % byte)


@pytest.mark.parametrize(
    "name",
    [
        b"\xc2",  # cut short
        b"\xe2\x82",
        b"\xf0\x9f\x98",
        b"\xe2\x82A",
        b"\xf0\x9fA\x98",
        b"\xc0\x80",  # overlong
        b"\xc1\xbf",
        b"\xe0\x80\x80",
        b"\xe0\x9f\xbf",
        b"\xf0\x80\x80\x80",
        b"\xf0\x8f\xbf\xbf",
        b"\xed\xa0\x80",  # surrogates
        b"\xed\xbf\xbf",
        b"\xf4\x90\x80\x80",  # beyond Unicode
        b"\xf5\x80\x80\x80",
        b"\xff\xfe",
        b"\xc2\x7f",
        b"\xc2\xc2\xa0",
        b"\x80\xbf",
        b"\xc2\xa0",  # the first and last of each length
        b"\xdf\xbf",
        b"\xe0\xa0\x80",
        b"\xed\x9f\xbf",
        b"\xee\x80\x80",
        b"\xef\xbf\xbf",
        b"\xf0\x90\x80\x80",
        b"\xf4\x8f\xbf\xbf",
    ],
)
def test_edges_of_utf8(name: bytes) -> None:
    assert sanitize(name).decode() == plain_sanitize(name)


@pytest.mark.parametrize("code", [*range(0x80, 0xA0), 0x2028, 0x2029, *sorted(BIDI)], ids=hex)
def test_characters_that_move_or_reorder_text_are_escaped(code: int) -> None:
    assert sanitize(f"a{chr(code)}b".encode()) == b"a\\u%04xb" % code


def test_every_other_character_stays() -> None:
    every = "".join(
        char
        for char in map(chr, range(0x20, 0x110000))
        if unicodedata.category(char) not in {"Cc", "Zl", "Zp", "Cs"} and ord(char) not in BIDI
    )
    assert sanitize(every.encode()) == every.encode()


@given(NAMES)
def test_sanitize_is_what_plain_python_makes(name: bytes) -> None:
    assert sanitize(name).decode() == plain_sanitize(name)


@given(NAMES)
def test_sanitized_text_is_one_line_without_control_characters(name: bytes) -> None:
    clean = sanitize(name).decode()
    assert len(clean.splitlines()) <= 1
    assert not [char for char in clean if unicodedata.category(char) in {"Cc", "Cs", "Zl", "Zp"} or ord(char) in BIDI]
    assert sanitize(clean.encode()) == clean.encode()


@given(formats(WATCH_FIELDS), NAMES, NAMES, TEXTS, TEXTS, TAGS)
def test_message_is_what_the_plain_renderer_makes(
    text: str, path: bytes, file: bytes, pod: str, node: str, tags: list[tuple[str, str]]
) -> None:
    try:
        template = compile_format(text)
    except MalformedFormat:
        assume(False)
    values = {
        "event": "CREATE",
        "ftype": "directory",
        "path": plain_sanitize(path),
        "file": plain_sanitize(file),
        "sep": "/" if file and path != b"/" else "",
        "pod": plain_sanitize(pod.encode()),
        "node": plain_sanitize(node.encode()),
        "tags": ",".join(f"{plain_sanitize(key.encode())}={plain_sanitize(value.encode())}" for key, value in tags),
    }
    message = encoder(template, pod, node, tags=tags).message("CREATE", "directory", path, file)
    assert message.decode() == render(escaped_template(template), values)


@given(NAMES, NAMES, TEXTS, TAGS, st.integers(0, 4_000_000_000_000_000))
def test_json_line_is_what_the_daemons_json_formatter_makes(
    path: bytes, file: bytes, pod: str, tags: list[tuple[str, str]], realtime_us: int
) -> None:
    lines = encoder(pod=pod, tags=tags)
    fields = {
        "event": "MOVED_TO",
        "ftype": "file",
        "path": plain_sanitize(path),
        "file": plain_sanitize(file),
        "pod": plain_sanitize(pod.encode()),
        "node": "node1",
        "watcher": "w1",
        "container": "c" * 64,
        "tags": {plain_sanitize(key.encode()): plain_sanitize(value.encode()) for key, value in tags},
    }
    message = lines.message("MOVED_TO", "file", path, file).decode()
    line = lines.json_line("MOVED_TO", "file", path, file, realtime_us * 1000)
    assert line == library_line("argusd.events", message, fields, realtime_us * 1000)


@given(NAMES, NAMES, TEXTS, TAGS)
def test_json_line_is_one_line_of_json_whatever_the_names(
    path: bytes, file: bytes, pod: str, tags: list[tuple[str, str]]
) -> None:
    line = encoder(pod=pod, tags=tags).json_line("OPEN", "file", path, file, NOON_NS).decode()
    assert line.splitlines() == [line[:-1]]
    record = json.loads(line)
    assert list(record) == [
        "timestamp", "level", "logger", "message", "event", "ftype", "path", "file", "pod", "node", "watcher",
        "container", "tags",
    ]  # fmt: skip
    assert (record["level"], record["logger"], record["event"]) == ("INFO", "argusd.events", "OPEN")
    assert (record["path"], record["file"]) == (plain_sanitize(path), plain_sanitize(file))


def test_json_time_is_utc_with_microseconds() -> None:
    line = encoder().json_line("OPEN", "file", b"/a", b"b", NOON_NS + 999)
    expected = datetime.fromtimestamp(NOON_NS // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%S") + ".123456Z"
    assert json.loads(line)["timestamp"] == expected


def test_text_line_has_the_prefix_of_glog() -> None:
    line = encoder().text_line("OPEN", "file", b"/a", b"b", NOON_NS).decode()
    match = re.fullmatch(r"I(\d{4} \d\d:\d\d:\d\d\.\d{6}) (\d+) [\w.]+:\d+\] (.*)\n", line)
    assert match
    local = datetime.fromtimestamp(NOON_NS // 10**9, UTC).astimezone().strftime("%m%d %H:%M:%S")
    assert match[1] == f"{local}.123456"
    assert int(match[2]) == threading.get_native_id()
    assert match[3] == "OPEN file '/a/b' (pod1:node1) "


@given(NAMES, NAMES)
def test_text_line_is_prefix_message_and_newline(path: bytes, file: bytes) -> None:
    lines = encoder()
    line = lines.text_line("OPEN", "file", path, file, NOON_NS).decode()
    message = lines.message("OPEN", "file", path, file).decode()
    assert line.splitlines() == [line[:-1]]
    assert line.split("] ", 1)[1] == f"{message}\n"


@pytest.mark.parametrize(
    ("path", "file", "expected"),
    [(b"/", b"x", "'/x'"), (b"/", b"", "'/'"), (b"/d", b"x", "'/d/x'"), (b"/d", b"", "'/d'")],
)
def test_separator_stands_between_a_path_and_a_name_only(path: bytes, file: bytes, expected: str) -> None:
    template = compile_format("'{path}{sep}{file}'")
    assert encoder(template).message("OPEN", "file", path, file).decode() == expected


def test_tags_are_pairs_in_the_message_and_an_object_in_json() -> None:
    lines = encoder(tags=[("a", "1"), ("b", 'x"\n')])
    assert lines.message("OPEN", "file", b"/a", b"").decode() == "OPEN file '/a' (pod1:node1) a=1,b=x\"\\n"
    assert json.loads(lines.json_line("OPEN", "file", b"/a", b"", NOON_NS))["tags"] == {"a": "1", "b": 'x"\\n'}


def test_a_file_name_cannot_forge_a_line() -> None:
    forged = b'x\nI1218 14:03:22.123456 1 f:1] DELETE file\r{"message":"x"}\xe2\x80\xa8"}\n'
    lines = encoder()
    for line in (
        lines.text_line("OPEN", "file", b"/", forged, NOON_NS),
        lines.json_line("OPEN", "file", b"/", forged, NOON_NS),
    ):
        assert len(line.decode().splitlines()) == 1
        assert line.count(b"\n") == 1
    assert json.loads(lines.json_line("OPEN", "file", b"/", forged, NOON_NS))["event"] == "OPEN"


def test_the_longest_names_fit() -> None:
    path, file = b"/\xff" * 2000, b"\n" * 255
    message = encoder().message("OPEN", "file", path, file).decode()
    assert message == f"OPEN file '{plain_sanitize(path)}/{plain_sanitize(file)}' (pod1:node1) "


@pytest.mark.parametrize(
    "segment", [("path", b"", "<", 0, -1), ("path", b"12345", "<", 0, -1), ("path", b" ", "=", 0, -1)]
)
def test_a_segment_that_is_none_is_refused(segment: tuple[str, bytes, str, int, int]) -> None:
    with pytest.raises(ValueError, match="segment"):
        Encoder([segment], "p", "n", "w", "c", [])


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(KeyError):
        Encoder([("secret", b" ", "<", 0, -1)], "p", "n", "w", "c", [])


def test_encoders_give_their_memory_back() -> None:
    def resident_kib() -> int:
        with open("/proc/self/statm", encoding="ascii") as statm:  # noqa: PTH123  (read often, and nothing else)
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE") // 1024

    def use(times: int) -> None:
        for _ in range(times):
            encoder(tags=[("k" * 1000, "v" * 1000)]).json_line("OPEN", "file", b"/p" * 500, b"f" * 200, NOON_NS)

    use(2_000)
    before = resident_kib()
    use(10_000)  # 40 MB, were they kept
    assert resident_kib() - before < 4096
