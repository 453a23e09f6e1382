"""The command line, in the spellings of gflags, as a :class:`Settings`."""

from __future__ import annotations

import difflib
import re
import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final, Literal, TypeAlias

from argusd import __version__

__all__ = ["KNOWN_SERVICES", "FlagError", "Settings", "help_text", "hint", "parse", "version_text"]

KNOWN_SERVICES: Final = ("argus", "janus")
"""Every word that ``-services`` takes."""

_PROGRAM_SERVICES: Final = {"argusd": ("argus",), "janusd": ("janus",)}
_PROGRAM: Final = re.compile(r"(argusd|janusd)(?![0-9A-Za-z])")
_PURPOSES: Final = {
    "argus": "reports what happens to files inside containers.",
    "janus": "allows or denies the use of files inside containers.",
}
_LOG_STYLES: Final = ("auto", "json", "text")
_WAYS: Final = ("auto", "openat2", "setns")

# What gflags takes as a boolean, in any case.
_TRUE: Final = frozenset({"1", "t", "true", "y", "yes"})
_FALSE: Final = frozenset({"0", "f", "false", "n", "no"})

# Decimal or, as gflags has it, hexadecimal after 0x. ASCII digits only: int() alone takes much more.
_INTEGER: Final = re.compile(r"[+-]?(?:0[xX][0-9a-fA-F]{1,8}|[0-9]{1,10})", re.ASCII)
_INT32: Final = range(-(2**31), 2**31)
_LAST_PORT: Final = 2**16 - 1
_PORT: Final = re.compile(r"[0-9]{1,5}", re.ASCII)
_HOST: Final = re.compile(r"\[[0-9a-fA-F:.]+(?:%[^\]\s]+)?\]|[^:\[\]/\s]*")


_Value: TypeAlias = bool | int | str | tuple[str, ...]


class FlagError(ValueError):
    """The command line cannot be used; ``str()`` is the message for the operator, one line per mistake."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the operator asked for."""

    action: Literal["serve", "help", "version"] = "serve"
    services: tuple[str, ...] = ("argus",)
    tls: bool = False
    tlscafile: str = ""
    tlscertfile: str = ""
    tlskeyfile: str = ""
    address: str = "[::]:50051"
    config: str = ""
    enter: str = "auto"
    health_address: str = ""
    log: str = "auto"
    log_dir: str = "/tmp"  # noqa: S108  (the documented default; the file in it is opened without following links)
    max_queued_events: int = 0
    state_dir: str = ""
    watch_share: int = 50
    v: int = 0
    reflection: bool = False


@dataclass(frozen=True, slots=True)
class _Flag:
    """One flag: its type as gflags names it, and how its text becomes a value (ValueError: it cannot)."""

    name: str
    kind: Literal["bool", "int32", "string"]
    convert: Callable[[str], _Value]
    description: str
    wanted: str = ""


def _boolean(text: str) -> bool:
    word = text.lower()
    if word not in _TRUE and word not in _FALSE:
        raise ValueError(text)
    return word in _TRUE


def _integer(text: str) -> int:
    if not _INTEGER.fullmatch(text):
        raise ValueError(text)
    number = int(text, 16 if "x" in text.lower() else 10)
    if number not in _INT32:
        raise ValueError(text)
    return number


def _within(numbers: range) -> Callable[[str], int]:
    def parse(text: str) -> int:
        number = _integer(text)
        if number not in numbers:
            raise ValueError(text)
        return number

    return parse


def _services(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    if any(name not in KNOWN_SERVICES for name in names):
        raise ValueError(text)
    return names


def _choice(known: Collection[str]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in known:
            raise ValueError(text)
        return text

    return parse


def _address(text: str) -> str:
    scheme, _, path = text.partition(":")
    if scheme == "unix" and path:
        return text
    host, colon, port = text.rpartition(":")
    if not colon or not _HOST.fullmatch(host) or not _PORT.fullmatch(port) or int(port) > _LAST_PORT:
        raise ValueError(text)
    return text


def _optional_address(text: str) -> str:
    return _address(text) if text else ""


_FLAGS: Final = {
    flag.name: flag
    for flag in (
        _Flag("address", "string", _address, "Listen address.", "HOST:PORT, [IPV6]:PORT or unix:PATH"),
        _Flag("config", "string", str, "Static watches and guards, no controller needed. Not in this version."),
        _Flag(
            "enter", "string", _choice(_WAYS),
            "Way into containers: auto is openat2, or setns where openat2 is missing.", "auto, openat2 or setns",
        ),
        _Flag(
            "health_address", "string", _optional_address,
            "Second listen address, for health alone and in plaintext: for probes without a certificate.",
            "HOST:PORT, [IPV6]:PORT or unix:PATH",
        ),
        _Flag(
            "log", "string", _choice(_LOG_STYLES),
            "Log style: auto is text on a terminal, else JSON.", "auto, json or text",
        ),
        _Flag("log_dir", "string", str, 'Folder that also gets the log as text, in argusd.INFO; "" turns it off.'),
        _Flag(
            "max_queued_events", "int32", _within(range(_INT32.stop)),
            "Events that the kernel's queue is to hold; 0 is fs.inotify.max_queued_events as it is.", "a number from 0",
        ),
        _Flag("reflection", "bool", _boolean, "Serve gRPC server reflection."),
        _Flag(
            "services", "string", _services, "What to serve: argus (watches), janus (guards) or both, as argus,janus.",
            ", ".join(KNOWN_SERVICES),
        ),
        _Flag("state_dir", "string", str, "Directory that keeps what is watched and guarded across restarts."),
        _Flag("tls", "bool", _boolean, "Serve mutual TLS: a client certificate is required and verified."),
        _Flag("tlscafile", "string", str, "PEM file: the certificate authorities of the clients."),
        _Flag("tlscertfile", "string", str, "PEM file: the certificate of this server."),
        _Flag("tlskeyfile", "string", str, "PEM file: the private key of this server."),
        _Flag("v", "int32", _integer, "Verbosity: higher says more."),
        _Flag(
            "watch_share", "int32", _within(range(1, 101)),
            "Percent of the user's inotify watches that one container may have.", "a number from 1 to 100",
        ),
        _Flag("help", "bool", _boolean, "Show this text and exit."),
        _Flag("version", "bool", _boolean, "Show the version and exit."),
    )
}  # fmt: skip

# gflags has a family of help flags; here they all show the same text.
_ALIASES: Final = {"h": "help", "helpfull": "help", "helpshort": "help"}


def parse(argv: Sequence[str], program: str) -> Settings:
    """Read the arguments that follow the program's name.

    ``program`` is the name under which the binary was called; its last path component picks the default services.
    Raises FlagError. As in gflags, the last of repeated flags counts, and ``-help`` wins over mistakes elsewhere.
    """
    values: dict[str, _Value] = {"services": _default_services(program)}
    errors: list[str] = []
    rest = iter(argv)
    for argument in rest:
        try:
            if argument == "--":
                _refuse_positional(next(rest, None))
            elif argument.startswith("-") and argument != "-":
                name, value = _read_flag(argument, rest)
                values[name] = value
            else:
                _refuse_positional(argument)
        except FlagError as error:
            errors.append(str(error))
    show_help, show_version = values.pop("help", False), values.pop("version", False)
    if show_help or show_version:
        return _settings(values | {"action": "help" if show_help else "version"})
    if values.get("config"):
        errors.append("ERROR: flag 'config': this version has no static configuration")
    if errors:
        raise FlagError("\n".join(errors))
    return _settings(values)


def _settings(values: Mapping[str, _Value]) -> Settings:
    return Settings(**values)  # type: ignore[arg-type]  # each value came from its own flag's converter


def _default_services(program: str) -> tuple[str, ...]:
    # Also under a name with a version, such as janusd-1.0.0.
    match = _PROGRAM.match(_basename(program))
    return _PROGRAM_SERVICES[match[1]] if match else ("argus",)


def _basename(program: str) -> str:
    return PurePosixPath(program).name


def _refuse_positional(argument: str | None) -> None:
    if argument is not None:
        raise FlagError(f"ERROR: unexpected argument '{argument}'")


def _read_flag(argument: str, rest: Iterator[str]) -> tuple[str, _Value]:
    """Name and value of the flag in ``argument``; takes the value from ``rest`` when it stands there."""
    key, equals, text = argument.removeprefix("-").removeprefix("-").partition("=")
    flag = _find(key)
    if flag is None and key.startswith("no"):
        flag = _find(key.removeprefix("no"))
        if flag is not None and flag.kind != "bool":
            raise FlagError(f"ERROR: boolean value ({key}) specified for {flag.kind} command line flag")
        equals, text = "=", "0"  # gflags ignores what is written behind -nox=
    if flag is None:
        raise FlagError(f"ERROR: unknown command line flag '{key}'")
    if not equals:
        if flag.kind == "bool":
            text = "1"
        else:
            following = next(rest, None)
            if following is None:
                raise FlagError(f"ERROR: flag '{key}' is missing its argument")
            text = following
    try:
        return flag.name, flag.convert(text)
    except ValueError:
        wanted = f" (wanted: {flag.wanted})" if flag.wanted else ""
        raise FlagError(f"ERROR: illegal value '{text}' specified for {flag.kind} flag '{flag.name}'{wanted}") from None


def _find(key: str) -> _Flag | None:
    """The flag of that name; gflags takes a hyphen for an underscore."""
    name = key.replace("-", "_")
    return _FLAGS.get(_ALIASES.get(name, name))


def hint(argv: Sequence[str]) -> str:
    """Return the line that follows mistakes: which flags may have been meant, and where all of them stand."""
    keys = [argument.lstrip("-").partition("=")[0].replace("-", "_") for argument in argv if argument.startswith("-")]
    known = [*_FLAGS, *_ALIASES]
    unknown = [key for key in keys if key not in known and key.removeprefix("no") not in known]
    close = [name for key in unknown for name in difflib.get_close_matches(key, _FLAGS, n=1)]
    meant = f"Did you mean {', '.join(f'-{name}' for name in dict.fromkeys(close))}? " if close else ""
    return f"{meant}-help lists all flags."


def version_text(program: str) -> str:
    """What ``-version`` prints."""
    return f"{_basename(program)} version {__version__}\n"


def help_text(program: str) -> str:
    """What ``-help`` prints."""
    name = _basename(program)
    defaults = Settings(services=_default_services(program))
    lines = [
        f"{name}: {_PURPOSES[_default_services(program)[0]]}",
        "",
        f"usage: {name} [flags]",
        "",
        "A flag may be written -x, --x, -x=VALUE or -x VALUE; a boolean -x, -nox or -x=true|false.",
        "",
    ]
    for flag in _FLAGS.values():
        lines.append(f"  -{flag.name} ({_shown_default(flag, defaults)})")
        lines.extend(textwrap.wrap(flag.description, 96, initial_indent="        ", subsequent_indent="        "))
    return "\n".join(lines) + "\n"


def _shown_default(flag: _Flag, defaults: Settings) -> str:
    value: object = getattr(defaults, flag.name, False)
    if isinstance(value, tuple):
        value = ",".join(value)
    shown = f'"{value}"' if flag.kind == "string" else str(value).lower()
    return f"{flag.kind}, default {shown}"
