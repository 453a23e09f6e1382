"""CreateWatch and CreateGuard requests, checked and frozen: nothing behind this module sees a client's message."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Generic, TypeVar

from argusd.proto import argus_pb2, janus_pb2
from argusd.templates import (
    DEFAULT_GUARD_TEMPLATE,
    DEFAULT_WATCH_TEMPLATE,
    GUARD_FIELDS,
    WATCH_FIELDS,
    MalformedFormat,
    Template,
    compile_format,
)

__all__ = [
    "EVENT_MASKS",
    "GUARD_EVENT_MASKS",
    "GuardSubject",
    "InvalidRequest",
    "Request",
    "Subject",
    "container_id",
    "parse_guard",
    "parse_watch",
]

# inotify(7), <sys/inotify.h>
IN_ACCESS: Final = 0x001
IN_MODIFY: Final = 0x002
IN_ATTRIB: Final = 0x004
IN_CLOSE_WRITE: Final = 0x008
IN_CLOSE_NOWRITE: Final = 0x010
IN_OPEN: Final = 0x020
IN_MOVED_FROM: Final = 0x040
IN_MOVED_TO: Final = 0x080
IN_CREATE: Final = 0x100
IN_DELETE: Final = 0x200
IN_DELETE_SELF: Final = 0x400
IN_MOVE_SELF: Final = 0x800
IN_ALL_EVENTS: Final = 0xFFF

EVENT_MASKS: Final = MappingProxyType(
    {
        "access": IN_ACCESS,
        "attrib": IN_ATTRIB,
        "closewrite": IN_CLOSE_WRITE,
        "closenowrite": IN_CLOSE_NOWRITE,
        "close": IN_CLOSE_WRITE | IN_CLOSE_NOWRITE,
        "create": IN_CREATE,
        "delete": IN_DELETE,
        "deleteself": IN_DELETE_SELF,
        "modify": IN_MODIFY,
        "moveself": IN_MOVE_SELF,
        "movedfrom": IN_MOVED_FROM,
        "movedto": IN_MOVED_TO,
        "move": IN_MOVED_FROM | IN_MOVED_TO,
        "open": IN_OPEN,
        "all": IN_ALL_EVENTS,
    }
)
"""The words of a watch's ``subject.event`` and what they ask the kernel for."""

# fanotify(7), <sys/fanotify.h>
FAN_OPEN_PERM: Final = 0x10000
FAN_ACCESS_PERM: Final = 0x20000

GUARD_EVENT_MASKS: Final = MappingProxyType(
    {"open": FAN_OPEN_PERM, "access": FAN_ACCESS_PERM, "all": FAN_OPEN_PERM | FAN_ACCESS_PERM}
)
"""The words of a guard's ``subject.event``."""

_VALID_EVENTS: Final = ", ".join(EVENT_MASKS)
_VALID_GUARD_EVENTS: Final = ", ".join(GUARD_EVENT_MASKS)

# What one request may hold. The kernel sets some of these; the others are far beyond any use, and keep a hostile
# request from costing more than the bytes in which it came.
_MAX_NAME_BYTES: Final = 1024  # name, nodeName, podName: Kubernetes stops at 253, and they are part of every line
_MAX_CONTAINERS: Final = 256  # pid and cid each: a pod has a handful, and each costs subscriptions and a descriptor
_MAX_SUBJECTS: Final = 1024  # each becomes a subscription in every container
_MAX_PATHS: Final = 4096  # in a field of a subject: each is looked up and kept watched in every container
_MAX_PATH_BYTES: Final = 4095  # PATH_MAX less its NUL
_MAX_COMPONENT_BYTES: Final = 255  # NAME_MAX: no file system of Linux has longer names
_MAX_EVENTS: Final = 256  # in a subject: there are 15 words
_MAX_IGNORED: Final = 1024  # in a subject: compared with the name of every directory
_MAX_TAGS: Final = 256  # in a subject: written on every line
_MAX_TAG_BYTES: Final = 4096  # a key or a value
_MAX_WARNINGS: Final = 16  # lines that one request may put into the log
_MAX_ECHO: Final = 100  # characters of a request that one message repeats

# What the container runtimes' integrations put before the id in a pod's status.
_CONTAINER_ID: Final = re.compile(
    r"(?:(?:docker|containerd|cri-o|podman|rkt|runc|crun)://)?([0-9a-f]{12,64})", re.ASCII
)


class InvalidRequest(ValueError):  # noqa: N818  (named after INVALID_ARGUMENT)
    """The client's mistake: which field, and what is wrong with it."""

    def __init__(self, field: str, reason: str) -> None:
        """``field`` is written as in the message, ``subject[0].path[2]``; ``reason`` is safe to log and to send."""
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Subject:
    """What to watch in each container of a request: normalised, so that subjects that mean the same are equal."""

    paths: tuple[str, ...]
    mask: int
    ignore: tuple[str, ...]
    only_dir: bool
    recursive: bool
    max_depth: int
    follow_move: bool
    tags: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class GuardSubject:
    """What to guard in each container of a request: normalised likewise. No path is in both ``deny`` and ``allow``."""

    deny: tuple[str, ...]
    allow: tuple[str, ...]
    mask: int
    only_dir: bool
    auto_allow_owner: bool
    audit: bool
    tags: tuple[tuple[str, str], ...]


SubjectT = TypeVar("SubjectT", bound=Subject | GuardSubject)
_Message = TypeVar("_Message")
_Config = argus_pb2.ArgusdConfig | janus_pb2.JanusdConfig


@dataclass(frozen=True, slots=True)
class Request(Generic[SubjectT]):
    """A CreateWatch or CreateGuard request that can be carried out.

    ``cids`` are as the client wrote them (see :func:`container_id`), each container once. ``warnings`` are for the
    log; two requests that ask for the same are equal whatever they were warned about. ``source`` is the message.
    """

    name: str
    node_name: str
    pod_name: str
    pids: tuple[int, ...]
    cids: tuple[str, ...]
    subjects: tuple[SubjectT, ...]
    template: Template
    warnings: tuple[str, ...] = field(compare=False)
    source: bytes = field(default=b"", compare=False, repr=False)


def parse_watch(config: argus_pb2.ArgusdConfig) -> Request[Subject]:
    """Check and normalise a CreateWatch request. Raises InvalidRequest."""
    pids, cids = _address(config)
    nothing = f"nothing to watch: no subject has both a path and a valid event (valid events: {_VALID_EVENTS})"
    subjects, warnings = _subjects(config.subject, _subject, nothing)
    template, complaint = _template(config.logFormat, WATCH_FIELDS, DEFAULT_WATCH_TEMPLATE, "ArgusWatcher")
    return Request(
        config.name, config.nodeName, config.podName, pids, cids, subjects, template, _shortened(warnings, complaint)
    )


def parse_guard(config: janus_pb2.JanusdConfig) -> Request[GuardSubject]:
    """Check and normalise a CreateGuard request. Raises InvalidRequest."""
    pids, cids = _address(config)
    nothing = f"nothing to guard: no subject has both a path and an event (valid events: {_VALID_GUARD_EVENTS})"
    subjects, warnings = _subjects(config.subject, _guard_subject, nothing)
    template, complaint = _template(config.logFormat, GUARD_FIELDS, DEFAULT_GUARD_TEMPLATE, "JanusGuard")
    return Request(
        config.name, config.nodeName, config.podName, pids, cids, subjects, template, _shortened(warnings, complaint)
    )


def container_id(cid: str) -> str:
    """Return the hexadecimal id in ``cid``, without its scheme. Raises ValueError when ``cid`` is no container id."""
    match = _CONTAINER_ID.fullmatch(cid)
    if match is None:
        raise ValueError(
            f"{_shown(cid)} is no container id (wanted: SCHEME://ID, ID of 12 to 64 lower-case hex digits)"
        )
    return match.group(1)


def _address(config: _Config) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Check whom a request means; returns its pids and cids, each once."""
    for name, value in (("name", config.name), ("nodeName", config.nodeName), ("podName", config.podName)):
        _limit_bytes(name, value, _MAX_NAME_BYTES)
    _limit_count("pid", config.pid, _MAX_CONTAINERS)
    _limit_count("cid", config.cid, _MAX_CONTAINERS)
    if not config.pid and not config.cid:
        raise InvalidRequest("cid", "neither cid nor pid says which containers are meant")
    for i, pid in enumerate(config.pid):
        if pid <= 0:
            raise InvalidRequest(f"pid[{i}]", f"{pid} is no process id")
    by_id: dict[str, str] = {}
    for i, cid in enumerate(config.cid):
        try:
            by_id.setdefault(container_id(cid), cid)
        except ValueError as error:
            raise InvalidRequest(f"cid[{i}]", str(error)) from None
    return tuple(dict.fromkeys(config.pid)), tuple(by_id.values())


def _subjects(
    messages: Sequence[_Message], parse: Callable[[str, _Message, list[str]], SubjectT | None], nothing: str
) -> tuple[tuple[SubjectT, ...], list[str]]:
    """All subjects that can be used, and what to warn about; ``nothing`` says that there are none."""
    _limit_count("subject", messages, _MAX_SUBJECTS)
    warnings: list[str] = []
    parsed = [parse(f"subject[{i}]", message, warnings) for i, message in enumerate(messages)]
    subjects = tuple(subject for subject in parsed if subject is not None)
    if not subjects:
        raise InvalidRequest("subject", nothing)
    return subjects, warnings


def _template(log_format: str, fields: Sequence[str], default: Template, resource: str) -> tuple[Template, str]:
    """The template to use, and what to warn about. A malformed format must never lose events, nor leave a guard out."""
    try:
        return compile_format(log_format, fields, default.source), ""
    except MalformedFormat as error:
        return default, f'Malformed {resource} `.spec.logFormat`: "{error}"'


def _shortened(warnings: Sequence[str], complaint: str) -> tuple[str, ...]:
    """As many warnings about subjects as one request may put into the log, and the one about its format."""
    shown = list(warnings[:_MAX_WARNINGS])
    if len(warnings) > _MAX_WARNINGS:
        shown.append(f"{len(warnings) - _MAX_WARNINGS} more warnings about subjects are not shown")
    return (*shown, complaint) if complaint else tuple(shown)


def _subject(where: str, subject: argus_pb2.ArgusWatcherSubject, warnings: list[str]) -> Subject | None:
    """One subject, or None when nothing of it can be watched."""
    paths = _paths(f"{where}.path", subject.path, warnings)
    mask = _mask(where, subject.event, warnings)
    ignore = _ignore(where, subject.ignore)
    tags = _tags(where, subject.tags)
    if subject.maxDepth < 0:
        raise InvalidRequest(f"{where}.maxDepth", f"{subject.maxDepth} is negative")
    if not paths or not mask:
        warnings.append(f"{where}: skipped, it has no {'path' if not paths else 'valid event'}")
        return None
    return Subject(
        paths=paths,
        mask=mask,
        ignore=ignore if subject.recursive else (),
        only_dir=subject.onlyDir,
        recursive=subject.recursive,
        max_depth=subject.maxDepth if subject.recursive else 0,
        follow_move=subject.followMove,
        tags=tags,
    )


def _guard_subject(where: str, subject: janus_pb2.JanusGuardSubject, warnings: list[str]) -> GuardSubject | None:
    """One subject, or None when it guards nothing."""
    deny = _paths(f"{where}.deny", subject.deny, warnings)
    allow = _paths(f"{where}.allow", subject.allow, warnings)
    mask = _guard_mask(where, subject.event)
    tags = _tags(where, subject.tags)
    both = set(deny).intersection(allow)
    if both:
        warnings.append(f"{where}.allow: also in deny, which wins: {_shown_list(sorted(both))}")
    if not mask or not (deny or allow):
        warnings.append(f"{where}: skipped, it has no {'event' if not mask else 'path'}")
        return None
    return GuardSubject(
        deny=deny,
        allow=tuple(path for path in allow if path not in both),
        mask=mask,
        only_dir=subject.onlyDir,
        auto_allow_owner=subject.autoAllowOwner,
        audit=subject.audit,
        tags=tags,
    )


def _guard_mask(where: str, events: Sequence[str]) -> int:
    """Unlike for a watch, a word that is not known is an error: what it was to guard would stay open unnoticed."""
    _limit_count(f"{where}.event", events, _MAX_EVENTS)
    mask = 0
    for i, event in enumerate(events):
        bits = GUARD_EVENT_MASKS.get(event.lower(), 0)
        if not bits:
            reason = f"{_shown(event)} guards nothing (valid events: {_VALID_GUARD_EVENTS})"
            raise InvalidRequest(f"{where}.event[{i}]", reason)
        mask |= bits
    return mask


def _paths(where: str, paths: Sequence[str], warnings: list[str]) -> tuple[str, ...]:
    _limit_count(where, paths, _MAX_PATHS)
    normalised = [_normalise(f"{where}[{i}]", path) for i, path in enumerate(paths) if path]
    if len(normalised) < len(paths):
        warnings.append(f"{where}: {len(paths) - len(normalised)} empty, ignored")
    return tuple(dict.fromkeys(normalised))


def _normalise(where: str, path: str) -> str:
    """Clean a path without looking at any file: ``..`` stays, because what it means depends on symlinks."""
    _limit_bytes(where, path, _MAX_PATH_BYTES)
    if "\0" in path:
        raise InvalidRequest(where, f"{_shown(path)} holds a NUL")
    components = [component for component in path.split("/") if component not in {"", "."}]
    for component in components:
        if len(component.encode()) > _MAX_COMPONENT_BYTES:
            raise InvalidRequest(
                where, f"the component {_shown(component)} is longer than {_MAX_COMPONENT_BYTES} bytes"
            )
    normalised = "/" + "/".join(components)
    _limit_bytes(where, normalised, _MAX_PATH_BYTES)  # again: a relative path has grown by its slash
    return normalised


def _mask(where: str, events: Sequence[str], warnings: list[str]) -> int:
    _limit_count(f"{where}.event", events, _MAX_EVENTS)
    mask = 0
    unknown: list[str] = []
    for event in events:
        bits = EVENT_MASKS.get(event.lower(), 0)
        mask |= bits
        if not bits:
            unknown.append(event)
    if unknown:
        names = _shown_list(dict.fromkeys(unknown))
        warnings.append(f"{where}.event: unknown, ignored: {names} (valid events: {_VALID_EVENTS})")
    return mask


def _ignore(where: str, names: Sequence[str]) -> tuple[str, ...]:
    """Sorted names of directories; what can be no name of a directory matches nothing and is left out."""
    _limit_count(f"{where}.ignore", names, _MAX_IGNORED)
    for i, name in enumerate(names):
        if "\0" in name:
            raise InvalidRequest(f"{where}.ignore[{i}]", f"{_shown(name)} holds a NUL")
    return tuple(sorted({name for name in names if name and len(name.encode()) <= _MAX_COMPONENT_BYTES}))


def _tags(where: str, tags: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    _limit_count(f"{where}.tags", tags, _MAX_TAGS)
    for key, value in tags.items():
        _limit_bytes(f"{where}.tags[{_shown(key)}]", key, _MAX_TAG_BYTES, "the key is")
        _limit_bytes(f"{where}.tags[{_shown(key)}]", value, _MAX_TAG_BYTES)
    return tuple(sorted(tags.items()))


def _limit_bytes(where: str, text: str, limit: int, what: str = "") -> None:
    size = len(text.encode())
    if size > limit:
        raise InvalidRequest(where, f"{what} {size} bytes long, the limit is {limit}".lstrip())


def _limit_count(where: str, values: Collection[object], limit: int) -> None:
    count = len(values)
    if count > limit:
        raise InvalidRequest(where, f"{count} entries, the limit is {limit}")


def _shown(text: str) -> str:
    """The beginning of a client's text, quoted, with everything escaped that does not print."""
    return repr(text[:_MAX_ECHO]) + ("…" if len(text) > _MAX_ECHO else "")


def _shown_list(texts: Iterable[str]) -> str:
    """As many of a client's texts, quoted, as fit into one message."""
    shown: list[str] = []
    room = _MAX_ECHO
    for text in texts:
        if room <= 0:
            shown.append("…")
            break
        shown.append(repr(text[:room]) + ("…" if len(text) > room else ""))
        room -= max(1, len(text))
    return ", ".join(shown)
