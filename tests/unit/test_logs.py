"""The daemon's own records as lines: one record is one line, whatever it says."""

from __future__ import annotations

import json
import logging
import os
import re
from typing import Any

import pytest

from argusd import logs
from argusd._output import COLOUR, TEXT
from argusd._records import Encoder
from argusd.logs import LineHandler
from argusd.templates import compile_format

PREFIX = re.compile(r"[IWEF]\d{4} \d\d:\d\d:\d\d\.\d{6} \d+ test_logs\.py:\d+\] ")


class Lines:
    def __init__(self) -> None:
        self.json: list[bytes] = []
        self.text: list[bytes] = []
        self.colour: list[bytes] = []

    def write(self, json_line: bytes, text_line: bytes, colour_line: bytes) -> None:
        self.json.append(json_line)
        self.text.append(text_line)
        self.colour.append(colour_line)

    @property
    def record(self) -> dict[str, Any]:
        record: dict[str, Any] = json.loads(self.json[-1])
        return record

    @property
    def message(self) -> str:
        """The last text line without its prefix."""
        return PREFIX.sub("", self.text[-1].decode().removesuffix("\n"))


@pytest.fixture
def lines() -> Lines:
    return Lines()


@pytest.fixture
def logger(lines: Lines) -> logging.Logger:
    logger = logging.Logger("argusd.test")  # noqa: LOG001  (outside of the tree of loggers: nobody else hears it)
    logger.addHandler(LineHandler(lines))
    return logger


@pytest.mark.parametrize(
    ("level", "name", "letter"),
    [
        (logging.DEBUG, "DEBUG", "I"),
        (logging.INFO, "INFO", "I"),
        (logging.WARNING, "WARNING", "W"),
        (logging.ERROR, "ERROR", "E"),
        (logging.CRITICAL, "FATAL", "F"),
    ],
)
def test_levels(logger: logging.Logger, lines: Lines, level: int, name: str, letter: str) -> None:
    logger.log(level, "hello")
    assert lines.record["level"] == name
    assert lines.text[-1].decode()[0] == letter
    assert PREFIX.match(lines.text[-1].decode())
    assert lines.message == "hello"


def test_keys_stand_in_the_order_of_the_event_lines(logger: logging.Logger, lines: Lines) -> None:
    logger.info("hello", extra={"watcher": "w"})
    event = Encoder(compile_format("").segments, "p", "n", "w", "c", []).json_line("CREATE", "file", b"/d", b"x", 1)
    common = list(json.loads(event))[:4]
    assert common == ["timestamp", "level", "logger", "message"]
    assert list(lines.record) == [*common, "watcher"]
    assert len(lines.record["timestamp"]) == len(json.loads(event)["timestamp"])


def test_json_is_compact_utf_8(logger: logging.Logger, lines: Lines) -> None:
    logger.info("größer")
    assert '"message":"größer"}\n'.encode() in lines.json[-1]


@pytest.mark.parametrize(
    "text", ["a\nb", "a\r\nI1218 forged", "\x1b[2J", "\x00", "\x7f", "\x85", "\u2028", "a\udc80", "\ud800b\udc80"]
)
def test_no_text_can_forge_a_line(logger: logging.Logger, lines: Lines, text: str) -> None:
    logger.info("%s", text, extra={"watcher": text})
    for line in (lines.json[-1], lines.text[-1]):
        decoded = line.decode()
        assert len(decoded.splitlines()) == 1
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", decoded)
    assert json.loads(lines.json[-1])


@pytest.mark.parametrize("mark", ["\u061c", "\u200e", "\u200f", "\u202a", "\u202e", "\u2066", "\u2069"])
def test_marks_that_turn_text_around_are_shown_as_in_event_lines(
    logger: logging.Logger, lines: Lines, mark: str
) -> None:
    logger.info("a%sb", mark, extra={"watcher": mark})
    shown = f"\\u{ord(mark):04x}"
    assert lines.message == lines.record["message"] == f"a{shown}b"
    assert lines.record["watcher"] == shown


def test_a_text_line_is_cut_before_a_runtime_cuts_it(logger: logging.Logger, lines: Lines) -> None:
    logger.info("%s", "\u00e4" * 20_000)
    assert len(lines.text[-1]) < 16 * 1024
    assert lines.message.endswith(" more bytes cut]")
    assert lines.record["message"] == "\u00e4" * 20_000


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_a_terminal_that_wants_no_colour_gets_none(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    monkeypatch.setattr(os, "isatty", lambda _: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert logs.stderr_style("auto") == COLOUR
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert logs.stderr_style("auto") == logs.stderr_style("text") == TEXT


def test_a_byte_that_is_no_utf_8_is_shown(logger: logging.Logger, lines: Lines) -> None:
    logger.info("%s", "a\udcffb")
    assert lines.message == r"a\xffb"
    assert lines.record["message"] == r"a\xffb"


def test_a_traceback_is_a_field_and_stays_on_the_line(logger: logging.Logger, lines: Lines) -> None:
    error = RuntimeError("no\nway")
    logger.error("failed", exc_info=error)
    assert lines.record["message"] == "failed"
    assert "RuntimeError: no\nway" in lines.record["exc_info"]
    assert lines.text[-1].count(b"\n") == 1
    assert b"RuntimeError" in lines.text[-1]


def test_a_malformed_record_is_reported_instead_of_raised(logger: logging.Logger, lines: Lines) -> None:
    logger.info("%d", "not a number")
    assert "Malformed log record" in lines.message
    assert len(lines.json) == 1


def test_colour_is_on_the_prefix_only(logger: logging.Logger, lines: Lines) -> None:
    logger.warning("hello")
    assert re.fullmatch(rb"\x1b\[33mW.*\]\x1b\[0m hello\n", lines.colour[-1])
