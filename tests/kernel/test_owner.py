"""Whose child a process is: its number says nothing, nor does what was true when it asked before."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import pytest

from tests.kernel.guarding import Guarding
from tests.waiting import until

SYS_CLONE3: Final = 435
PR_SET_CHILD_SUBREAPER: Final = 36
KEPT: Final = 64
"""For how many processes the responder keeps a descriptor."""

_libc: Final = ctypes.CDLL(None, use_errno=True)


class _CloneArguments(ctypes.Structure):
    """struct clone_args, see clone(2)."""

    _fields_ = (
        *((name, ctypes.c_uint64) for name in ("flags", "pidfd", "child_tid", "parent_tid", "exit_signal")),
        *((name, ctypes.c_uint64) for name in ("stack", "stack_size", "tls", "set_tid", "set_tid_size")),
    )


def _fork_as(number: int) -> int:
    """Fork; the child has this number."""
    numbers = (ctypes.c_int * 1)(number)
    arguments = _CloneArguments(exit_signal=signal.SIGCHLD, set_tid=ctypes.addressof(numbers), set_tid_size=1)
    pid: int = _libc.syscall(SYS_CLONE3, ctypes.byref(arguments), ctypes.sizeof(arguments))
    if pid < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return pid


def _free_number() -> int:
    """A number that no process has, nor soon gets: they are given out upwards."""
    last = int(Path("/proc/sys/kernel/pid_max").read_text()) - 1
    return next(number for number in range(last, 1, -1) if not Path(f"/proc/{number}").exists())


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _opens(path: Path) -> bool:
    with contextlib.suppress(PermissionError):
        os.close(os.open(path, os.O_RDONLY))
        return True
    return False


def _in_child(work: Callable[[], bytes], fork: Callable[[], int] = os.fork) -> bytes:
    """What a child says, which has ended."""
    read_fd, write_fd = os.pipe()
    pid = fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            os.write(write_fd, work())
        os._exit(0)
    os.close(write_fd)
    os.waitpid(pid, 0)
    with os.fdopen(read_fd, "rb") as said:
        return said.read()


class Parent:
    """A process, of whose children some open a file."""

    def __init__(self) -> None:
        """It also becomes the parent of its grandchildren when their parents have ended."""
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            with contextlib.suppress(BaseException):
                os.close(self._commands)
                _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
                while command := os.read(commands, 4096):
                    number, path = os.fsdecode(command).split(" ", 1)
                    os.write(answers, self._orphan(Path(path)) if number == "orphan" else self._child(number, path))
            os._exit(0)
        os.close(commands)
        os.close(answers)

    @staticmethod
    def _child(number: str, path: str) -> bytes:
        fork = (lambda: _fork_as(int(number))) if int(number) else os.fork
        return _in_child(lambda: bytes([_opens(Path(path))]), fork) or b"failed"

    @staticmethod
    def _orphan(path: Path) -> bytes:
        top = os.getpid()
        read_fd, write_fd = os.pipe()

        def grandchild() -> None:
            before = _opens(path)
            os.write(write_fd, bytes([before]))
            until(lambda: os.getppid() == top, "its parent has ended")
            os.write(write_fd, bytes([_opens(path)]))
            os._exit(0)

        def child() -> bytes:
            if os.fork() == 0:
                grandchild()
            return os.read(read_fd, 1)  # and so ends

        said = _in_child(child) + os.read(read_fd, 1)
        os.wait()
        return said

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._commands)
        os.waitpid(self.pid, 0)
        os.close(self._answers)

    def child_opens(self, path: Path, number: int = 0) -> bool:
        """Whether a new child, of that number, may open a file."""
        return self._ask(f"{number} {path}") == b"\1"

    def orphan_opens(self, path: Path) -> tuple[bool, ...]:
        """Whether a child of a child may, and whether the same process may after its parent has ended."""
        return tuple(map(bool, self._ask(f"orphan {path}")))

    def _ask(self, command: str) -> bytes:
        os.write(self._commands, os.fsencode(command))
        answer = os.read(self._answers, 16)
        assert answer != b"failed"
        return answer


@dataclass(frozen=True, slots=True)
class Family:
    """Two who have children."""

    owner: Parent
    stranger: Parent


@pytest.fixture
def family() -> Iterator[Family]:
    with Parent() as owner, Parent() as stranger:
        yield Family(owner, stranger)


@pytest.fixture
def guarding(tmp_path: Path, family: Family) -> Iterator[Guarding]:
    (tmp_path / "sentinel").write_text("-")
    (tmp_path / "d").mkdir()
    (tmp_path / "d/f").write_text("-")
    guarding = Guarding(tmp_path / "sentinel")
    guarding.guard("-", family.owner.pid, deny=[os.fsencode(tmp_path / "d")], auto_allow_owner=True)
    yield guarding
    guarding.close()


@pytest.mark.usefixtures("guarding")
def test_process_with_the_number_of_a_child_is_no_child(tmp_path: Path, family: Family) -> None:
    number = _free_number()
    for _ in range(3):
        assert family.owner.child_opens(tmp_path / "d/f", number)
        assert not family.stranger.child_opens(tmp_path / "d/f", number)


@pytest.mark.usefixtures("guarding")
def test_process_that_asks_again_may_have_another_parent(tmp_path: Path, family: Family) -> None:
    assert family.owner.orphan_opens(tmp_path / "d/f") == (False, True)
    assert family.stranger.orphan_opens(tmp_path / "d/f") == (False, False)


def test_processes_that_have_ended_leave_few_descriptors(tmp_path: Path, family: Family, guarding: Guarding) -> None:
    before = _descriptors()
    for _ in range(3 * KEPT):
        assert family.owner.child_opens(tmp_path / "d/f")
        assert not family.stranger.child_opens(tmp_path / "d/f")
    assert len(guarding.lines()) == 6 * KEPT
    assert _descriptors() <= before + KEPT + 2  # the links of two descriptors are kept open, too
