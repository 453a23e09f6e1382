"""The daemon's own records: stdlib logging in, finished lines for :class:`argusd._output.Output` out.

The lines of file events never come this way; they are made natively, with the same keys.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from pythonjsonlogger.json import JsonEncoder, JsonFormatter

from argusd._output import COLOUR, JSON, TEXT
from argusd._records import sanitize

if TYPE_CHECKING:
    from argusd._output import Output

__all__ = ["LineHandler", "LineSink", "start", "stderr_style", "write_start_error"]


STDERR_FD: Final = 2
FILE_NAME: Final = "argusd.INFO"
FILE_MAX_BYTES: Final = 10 * 1024 * 1024
FILE_BACKUPS: Final = 4

_LEVELS: Final = ((logging.CRITICAL, "FATAL"), (logging.ERROR, "ERROR"), (logging.WARNING, "WARNING"))
_COLOURS: Final = {"FATAL": "\x1b[1;31m", "ERROR": "\x1b[31m", "WARNING": "\x1b[33m", "INFO": "\x1b[32m"}
_DIM: Final = "\x1b[2m"
_RESET: Final = "\x1b[0m"
# Marks that change the direction of text (Unicode UAX 9), shown as the event lines show them.
_DIRECTION_MARKS: Final = {
    code: f"\\u{code:04x}" for code in (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
}
_TEXT_MAX: Final = 15 * 1024  # bytes of a message in text form: container runtimes cut lines at 16 KiB
# JSON leaves these as they are; a terminal or a log shipper may take them for control sequences or line ends.
_JSON_ESCAPES: Final = {code: f"\\u{code:04x}" for code in (*range(0x7F, 0xA0), 0x2028, 0x2029)}


class LineSink(Protocol):
    """The part of Output that takes finished lines."""

    def write(self, json_line: bytes, text_line: bytes, colour_line: bytes) -> None:
        """Queue one line, given in every style."""


def _level(record: logging.LogRecord) -> str:
    for number, name in _LEVELS:
        if record.levelno >= number:
            return name
    return "INFO" if record.levelno >= logging.INFO else "DEBUG"


def _printable(text: str) -> str:
    r"""Replace what UTF-8 cannot carry: a byte that Python smuggled in as a surrogate becomes ``\xNN``."""
    try:
        text.encode()
    except UnicodeEncodeError:
        errors = "surrogateescape" if _smuggled(text) else "surrogatepass"
        return text.encode("utf-8", errors).decode("utf-8", "backslashreplace")
    return text


def _smuggled(text: str) -> bool:
    """Whether every surrogate in ``text`` stands for a byte (PEP 383)."""
    return all("\udc80" <= char <= "\udcff" for char in text if "\ud800" <= char <= "\udfff")


def _one_line(text: str) -> str:
    r"""Return ``text`` with control characters escaped, newlines as ``\n``: one record is one line."""
    return sanitize(_printable(text).encode()).decode()


def _cut(text: str) -> str:
    """Return what of ``text`` may stand in a text line, and say so when that is not all."""
    data = text.encode()
    if len(data) <= _TEXT_MAX:
        return text
    kept = data[:_TEXT_MAX].decode("utf-8", "ignore")
    return f"{kept} [{len(data) - len(kept.encode())} more bytes cut]"


def _dumps(data: dict[str, Any], **_options: object) -> str:
    text = json.dumps(data, cls=JsonEncoder, ensure_ascii=False, separators=(",", ":"))
    return text.translate(_JSON_ESCAPES)


class _JsonLines(JsonFormatter):
    """One JSON object a line, in the key order of the event lines."""

    def __init__(self) -> None:
        super().__init__(("name", "message"), rename_fields={"name": "logger"}, json_serializer=_dumps)

    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        """Put time and level in front of what the library adds."""
        log_data["timestamp"] = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        log_data["level"] = _level(record)
        super().add_fields(log_data, record, message_dict)

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        """Make every text encodable, and harmless where it is shown."""
        return {
            key: _printable(value).translate(_DIRECTION_MARKS) if isinstance(value, str) else value
            for key, value in log_data.items()
        }


class _TextLines(logging.Formatter):
    """Lines with the prefix of glog: ``I1218 14:03:22.123456 tid file:line] ``, in local time."""

    def prefix(self, record: logging.LogRecord, tid: int) -> str:
        """Everything before the message; glog has no debug letter, its verbose lines are I."""
        clock = datetime.fromtimestamp(record.created, UTC).astimezone().strftime("%m%d %H:%M:%S.%f")
        letter = _level(record)[0].replace("D", "I")
        return f"{letter}{clock} {tid} {record.filename}:{record.lineno}]"

    def format(self, record: logging.LogRecord) -> str:
        """Return the message, with the traceback behind it, on one line."""
        text = record.getMessage()
        if record.exc_info:
            text = f"{text}\n{self.formatException(record.exc_info)}"
        return _cut(_one_line(text))


class LineHandler(logging.Handler):
    """Makes a record's line in each style and hands all of them to the sinks, which never block."""

    def __init__(self, sink: LineSink) -> None:
        """Write to ``sink``."""
        super().__init__()
        self._sink = sink
        self._json = _JsonLines()
        self._text = _TextLines()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the record; one that cannot be formatted is reported as such instead of being lost."""
        try:
            lines = self._lines(record)
        except Exception as error:  # noqa: BLE001  (whatever an argument's __str__ raises must not end the caller)
            record.msg, record.args, record.exc_info = "Malformed log record %r: %r", (record.msg, error), None
            lines = self._lines(record)
        self._sink.write(*lines)

    def _lines(self, record: logging.LogRecord) -> tuple[bytes, bytes, bytes]:
        prefix, message = self._text.prefix(record, threading.get_native_id()), self._text.format(record)
        colour = _COLOURS.get(_level(record), _DIM)
        return (
            f"{self._json.format(record)}\n".encode(),
            f"{prefix} {message}\n".encode(),
            f"{colour}{prefix}{_RESET} {message}\n".encode(),
        )


def stderr_style(style: str) -> int:
    """Return how lines look on stderr for ``-log=style``."""
    terminal = os.isatty(STDERR_FD)
    if style == "json" or (style == "auto" and not terminal):
        return JSON
    plain = "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"  # https://no-color.org
    return COLOUR if terminal and not plain else TEXT


def start(output: Output, style: str, log_dir: str, verbosity: int) -> LineHandler:
    """Open the sinks and send every logger's records there; a log file that cannot be had is one WARNING."""
    output.add_descriptor(STDERR_FD, stderr_style(style))
    handler = LineHandler(output)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)  # libraries speak only when something is wrong
    logger = logging.getLogger("argusd")
    logger.setLevel(logging.DEBUG if verbosity >= 1 else logging.INFO)
    logging.captureWarnings(capture=True)
    if log_dir:
        path = Path(log_dir) / FILE_NAME
        try:
            output.add_file(str(path), FILE_MAX_BYTES, FILE_BACKUPS)
        except OSError as error:
            logger.warning("No log file %s: %s", path, error.strerror or error)
    return handler


def write_start_error(style: str, message: str) -> None:
    """Write to stderr why the daemon does not start, in the style of the log; nothing else writes there any more."""
    if stderr_style(style) == JSON:
        record = logging.LogRecord("argusd.daemon", logging.ERROR, __file__, 0, message, None, None)
        line = f"{_JsonLines().format(record)}\n"
    else:
        line = f"ERROR: {_one_line(message)}\n"
    os.write(STDERR_FD, line.encode())
