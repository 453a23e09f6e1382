"""What watches and guards do differently: how a subject reaches the engine, what is counted, and the words for it.

Everything else about them is one piece of code, which is given a :class:`Kind`.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from argusd import privileges
from argusd._fanotify import GuardError
from argusd._records import Encoder
from argusd.refusals import (
    MARK_LIMIT,
    CannotGuardError,
    LimitReachedError,
    RequestRefusedError,
    container_label,
    forbidden,
    refusal,
    sysctl,
)
from argusd.subjects import GuardSubject, Subject

if TYPE_CHECKING:
    from collections.abc import Sequence

    from argusd._fanotify import Guards
    from argusd.containers import Container
    from argusd.metrics import Metrics
    from argusd.templates import Template

__all__ = ["GuardEngine", "GuardKind", "Kind", "PodKey", "WatchEngine", "WatchKind"]

_GROUP_LIMIT: Final = "fs.fanotify.max_user_groups"
# Nothing is at such a path that anybody could open; once there is, the engine finds it.
_NOTHING_THERE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})

SubjectT_contra = TypeVar("SubjectT_contra", contravariant=True)


@dataclass(frozen=True, slots=True)
class PodKey:
    """What a request calls its watch or guard; not unique, since a pod's namespace is not part of it."""

    node: str
    pod: str
    name: str

    def __str__(self) -> str:
        """Return the form of the log lines."""
        return f"({self.pod}:{self.node})"


class Kind(Protocol[SubjectT_contra]):
    """One of the two things that can be asked for."""

    noun: str
    """Also the key of its name in JSON lines."""
    label: str
    """The noun, as the lines about beginning and end have it."""
    done: str
    """What happens to a path."""
    may_lag: bool
    """Whether a request may be answered while a path is still being armed."""

    def acquire(self, key: PodKey) -> int:
        """Return the engine's counter for ``key``; 0 where nothing is counted."""

    def release(self, counter: int) -> None:
        """Undo one :meth:`acquire`."""

    def paths(self, subject: SubjectT_contra) -> tuple[str, ...]:
        """Return the paths of a subject in the order in which the engine tells what became of them."""

    def subscribe(
        self, key: PodKey, counter: int, container: Container, subject: SubjectT_contra, template: Template
    ) -> int:
        """Register a subject in a container with the engine, without effect; returns its number. Raises OSError."""

    def refusal(self, error: OSError, container: Container) -> RequestRefusedError:
        """Return what to tell a client of an error in subscribing or arming."""

    def unusable(self, path: str, code: int, container: Container) -> RequestRefusedError | None:
        """Return why a request must fail when one of its paths does with errno ``code``; None when it need not."""


class WatchEngine(Protocol):
    """The part of the native engine that takes watches."""

    def subscribe(
        self,
        encoder: Encoder,
        counter: int,
        pid: int,
        pidfd: int,
        paths: Sequence[bytes],
        mask: int,
        ignore: Sequence[bytes],
        only_dir: bool,  # noqa: FBT001  (the native face is positional)
        recursive: bool,  # noqa: FBT001
        max_depth: int,
        follow_move: bool,  # noqa: FBT001
    ) -> int:
        """Register one subject in one container, silent and unarmed."""


class WatchKind:
    """Watches: inotify, counted for RecordMetrics."""

    noun = "watcher"
    label = "`inotify` watcher"
    done = "watched"
    may_lag = True

    def __init__(self, engine: WatchEngine, metrics: Metrics) -> None:
        """``metrics`` knows the counters of ``engine``."""
        self._engine = engine
        self._metrics = metrics

    def acquire(self, key: PodKey) -> int:
        """Return the counter of a watcher on a node."""
        return self._metrics.acquire(key.name, key.node)

    def release(self, counter: int) -> None:
        """Give the counter back."""
        self._metrics.release(counter)

    def paths(self, subject: Subject) -> tuple[str, ...]:
        """Return the paths."""
        return subject.paths

    def subscribe(self, key: PodKey, counter: int, container: Container, subject: Subject, template: Template) -> int:
        """Register a watch."""
        return self._engine.subscribe(
            Encoder(template.segments, key.pod, key.node, key.name, container.id, subject.tags),
            counter,
            container.pid,
            container.pidfd,
            [path.encode() for path in subject.paths],
            subject.mask,
            [name.encode() for name in subject.ignore],
            subject.only_dir,
            subject.recursive,
            subject.max_depth,
            subject.follow_move,
        )

    def refusal(self, error: OSError, container: Container) -> RequestRefusedError:
        """Nothing can fail here that is not about the container, or about inotify."""
        return refusal(error, container)

    def unusable(self, path: str, code: int, container: Container) -> None:
        """Watch the other paths: no other daemon could do better."""
        del path, code, container


class GuardEngine(Protocol):
    """The part of the native engine that takes guards."""

    def guard(
        self,
        guards: Guards,
        encoder: Encoder,
        pid: int,
        pidfd: int,
        deny: Sequence[bytes],
        allow: Sequence[bytes],
        mask: int,
        only_dir: bool,  # noqa: FBT001  (the native face is positional)
        auto_allow_owner: bool,  # noqa: FBT001
        audit: bool,  # noqa: FBT001
    ) -> int:
        """Register one guard subject in one container, without effect."""


class GuardKind:
    """Guards: fanotify permission events, not counted. A guard that does not stand is an error, never a warning."""

    noun = "guard"
    label = "`fanotify` guard"
    done = "guarded"
    may_lag = False

    def __init__(self, engine: GuardEngine, guards: Guards) -> None:
        """``guards`` has the permission groups."""
        self._engine = engine
        self._guards = guards

    def acquire(self, key: PodKey) -> int:
        """Count nothing: RecordMetrics is about watches."""
        del key
        return 0

    def release(self, counter: int) -> None:
        """Nothing was counted."""

    def paths(self, subject: GuardSubject) -> tuple[str, ...]:
        """Return what is denied, then what is allowed."""
        return subject.deny + subject.allow

    def subscribe(
        self, key: PodKey, counter: int, container: Container, subject: GuardSubject, template: Template
    ) -> int:
        """Register a guard."""
        del counter
        return self._engine.guard(
            self._guards,
            Encoder(template.segments, key.pod, key.node, key.name, container.id, subject.tags, kind="guard"),
            container.pid,
            container.pidfd,
            [path.encode() for path in subject.deny],
            [path.encode() for path in subject.allow],
            subject.mask,
            subject.only_dir,
            subject.auto_allow_owner,
            subject.audit,
        )

    def refusal(self, error: OSError, container: Container) -> RequestRefusedError:
        """Say what fanotify refused, and what can be done about it."""
        if not isinstance(error, GuardError):
            return refusal(error, container)
        where = container_label(container)
        match error.step:
            case "init":
                return _group_refusal(error, where)
            case "audit":
                return _audit_refusal(error, where)
            case "mark":
                return _mark_refusal(error, where)
            case "check":
                return _check_refusal(error, where)
            case "kind":
                return _kind_refusal(error, where)

    def unusable(self, path: str, code: int, container: Container) -> RequestRefusedError | None:
        """Refuse what somebody may open although the daemon cannot guard it."""
        if code in _NOTHING_THERE:
            return None
        return CannotGuardError(f"cannot guard '{path}' in {container_label(container)}: {os.strerror(code)}")


def _group_refusal(error: GuardError, where: str) -> RequestRefusedError:
    what = f"cannot guard {where}"
    match error.errno:
        case errno.EPERM:
            return forbidden(f"{what}: fanotify_init(2) is not permitted", error, privileges.SYS_ADMIN)
        case errno.EMFILE:
            limit = f"{_GROUP_LIMIT} is {sysctl(_GROUP_LIMIT)}"
            return LimitReachedError(f"{what}: no fanotify groups left, or no file descriptors ({limit})")
        case errno.ENOMEM | errno.ENFILE:
            return LimitReachedError(f"{what}: fanotify_init(2): {error.strerror}")
    return CannotGuardError(
        f"{what}: fanotify_init(2): {error.strerror}; "
        "it takes a kernel with CONFIG_FANOTIFY_ACCESS_PERMISSIONS, and a seccomp profile that allows fanotify"
    )


def _audit_refusal(error: GuardError, where: str) -> RequestRefusedError:
    what = f"cannot guard {where} with `audit`"
    if error.errno == errno.EPERM:
        return forbidden(f"{what}: fanotify_init(2) is not permitted", error, privileges.AUDIT_WRITE)
    if error.errno in {errno.EMFILE, errno.ENOMEM, errno.ENFILE}:
        return _group_refusal(error, where)
    return CannotGuardError(
        f"{what}: fanotify_init(2): {error.strerror}; it takes a kernel with CONFIG_AUDITSYSCALL. "
        "Without `audit` the decisions stand in the daemon's own log all the same"
    )


def _check_refusal(error: GuardError, where: str) -> RequestRefusedError:
    what = f"cannot guard '{error.filename}' in {where}: an open of it, made to try the guard,"
    if error.errno == errno.ETIMEDOUT:
        return CannotGuardError(
            f"{what} does not come back; its file system does not answer, or another program that is asked first"
        )
    return CannotGuardError(
        f"{what} was not asked about ({error.strerror}); guard it on the file system on which it lies, or not at all"
    )


def _kind_refusal(error: GuardError, where: str) -> RequestRefusedError:
    return CannotGuardError(
        f"cannot guard '{error.filename}' in {where}: it is a device, a pipe or a socket, and the kernel asks nobody "
        "before these are opened; guard files or directories"
    )


def _mark_refusal(error: GuardError, where: str) -> RequestRefusedError:
    what = f"cannot guard '{error.filename}' in {where}"
    if error.errno == errno.ENOSPC:
        limit = f"{MARK_LIMIT} is {sysctl(MARK_LIMIT)}"
        return LimitReachedError(f"{what}: no fanotify marks left ({limit})")
    if error.errno in {errno.ENOMEM, errno.EMFILE, errno.ENFILE}:
        return LimitReachedError(f"{what}: fanotify_mark(2): {error.strerror}")
    if error.errno == errno.EOPNOTSUPP:
        return CannotGuardError(
            f"{what}: it lies on a file system that is not the container's root and may wait for a user's program "
            "(FUSE, or an overlay that may hide one): guard what lies on another one"
        )
    return CannotGuardError(
        f"{what}: fanotify_mark(2): {error.strerror}; its file system cannot be guarded: "
        "guard what lies on another one, or mount something else over the path"
    )
