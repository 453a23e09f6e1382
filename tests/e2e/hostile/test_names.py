"""Names that a container gives to its files: each is one line, and none of them forges anything."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.daemon import Daemon
from tests.e2e.hostile.hunt import HostileContainer, Hunt, create
from tests.waiting import until

LINE: Final = b"I1122 03:28:36.000000 1 _inotify.pyx:1] CREATE file 'shadow' (web-0:node1) "
RECORD: Final = b'{"timestamp":"2026-11-22T03:28:36.000000Z","level":"INFO","event":"CREATE","pod":"web-0"}'
FORGERIES: Final = (
    b"a\n" + LINE,
    b"\r" + LINE,
    b"a\n" + RECORD,
    b'","event":"DELETE","pod":"web-0","x":"',
    b"' (web-0:node1) app=web\n",
    b"\\",
    b'\\"',
    b"\\u0022,\\n",
    b"\x1b[2J\x1b[1;1H\x1b]0;title\x07",
    b"\x9b31m\xc2\x9b31m",
    b"\x08\x08\x08\x7f",
    "a\u2028b\u2029c\u0085d\x0b\x0c".encode(),
    "\u202egnp.exe\u202c\u2066x\u2069\u200e\u200f\u061c".encode(),
    b"\xed\xa0\x80\xed\xbf\xbf\xc0\xaf\xe0\x80\xaf\xf8\x88\x80\x80\x80\xf4\x90\x80\x80",
    b"cut \xe2\x82",
    "ünï€😀 ok".encode(),
    b"%s%n{0}{event}{{}}",
    b"(deleted)",
    b" ",
    b"...",
)
EVERY_BYTE: Final = bytes(byte for byte in range(1, 256) if byte != ord("/"))
NAMES: Final = (*FORGERIES, EVERY_BYTE, *(bytes([byte]) * 255 for byte in EVERY_BYTE if byte != ord(".")), b"." * 255)
_TEXT: Final = re.compile(r"[IWE]\d{4} \d{2}:\d{2}:\d{2}\.\d{6} +\d+ \w+\.pyx?:\d+\] ")
_ENDS: Final = {"Cc", "Zl", "Zp"}
_BIDI: Final = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
_SHORT: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_MARKS: Final = "\u200e\u200f\u061c"


def is_hostile(char: str) -> bool:
    """Whether a character could end a line, move a cursor or turn text round."""
    return char in _MARKS or unicodedata.category(char) in _ENDS or unicodedata.bidirectional(char) in _BIDI


def expected(name: bytes) -> str:
    r"""What stands in the log for a name: no control characters, and \xNN for what is no UTF-8."""
    return "".join(escaped(char) if is_hostile(char) else char for char in name.decode("utf-8", "backslashreplace"))


def escaped(char: str) -> str:
    """Return a character that does not stand for itself as text."""
    return _SHORT.get(char) or (f"\\x{ord(char):02x}" if char.isascii() else f"\\u{ord(char):04x}")


@pytest.fixture(params=["json", "text"])
def style(request: pytest.FixtureRequest) -> Iterator[tuple[str, Daemon]]:
    with Daemon(f"-log={request.param}") as daemon:
        yield request.param, daemon


def make(folder: Path, name: bytes) -> None:
    """Make a file of that name, and a directory of that name in the folder "in" with a file in it."""
    os.close(os.open(os.fsencode(folder) + b"/" + name, os.O_CREAT | os.O_WRONLY))
    os.mkdir(os.fsencode(folder) + b"/in/" + name)  # noqa: PTH102  (a name is bytes)


def test_every_name_is_one_line(style: tuple[str, Daemon], box: HostileContainer) -> None:
    kind, daemon = style
    folder = box.rootfs / "data"
    (folder / "in").mkdir()
    create(daemon, box.uri, "/data", pod="names", recursive=True, event=["create"])
    daemon.wait_for_text("Starting `inotify` watcher (names:node1)")
    before = len(daemon.lines)
    for name in NAMES:
        make(folder, name)
    (folder / "end").touch()
    until(lambda: any("/data/end" in line for line in daemon.lines[before:]), "the last line")
    lines = [line for line in daemon.lines[before:] if "/data/end" not in line]
    assert len(lines) == 2 * len(NAMES)
    assert not [line for line in lines if any(is_hostile(char) for char in line)]
    if kind == "text":
        texts = [line[match.end() :] for line in lines if (match := _TEXT.match(line))]
    else:
        records = [json.loads(line) for line in lines]
        assert {(record["event"], record["pod"], record["watcher"]) for record in records} == {
            ("CREATE", "names", "w1")
        }
        assert [record["file"] for record in records] == [expected(name) for name in NAMES for _ in range(2)]
        texts = [record["message"] for record in records]
    wanted = [
        f"CREATE {ftype} '{path}/{expected(name)}' (names:node1) "
        for name in NAMES
        for ftype, path in (("file", "/data"), ("directory", "/data/in"))
    ]
    assert texts == wanted


def test_every_name_can_be_watched_below(daemon: Daemon, hunt: Hunt, box: HostileContainer, pod: str) -> None:
    folder = os.fsencode(box.rootfs / "data")
    for name in NAMES:
        os.mkdir(folder + b"/" + name)  # noqa: PTH102  (a name is bytes)
    create(daemon, box.uri, "/data", pod=pod, recursive=True, event=["create"])
    for name in NAMES:
        os.close(os.open(folder + b"/" + name + b"/below", os.O_CREAT | os.O_WRONLY))

    def paths() -> list[str]:
        return [event["path"] for event in daemon.events if event["pod"] == pod and event["file"] == "below"]

    until(lambda: len(paths()) >= len(NAMES), "an event below each name")
    assert paths() == [f"/data/{expected(name)}" for name in NAMES]
    assert hunt.findings() == []
