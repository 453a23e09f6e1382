"""Runs a program that is answered an error instead of some system calls, as by an old kernel or a strict profile.

    python -m tests.restricted openat2=ENOSYS unshare=EPERM -- PROGRAM ARGUMENT…

The filter is seccomp(2), so the calls really are missing, also for native code.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Mapping
from typing import Final

__all__ = ["LOWER_NUMBERS", "restrict"]

# The numbers from 424 on are the same on all machines.
SAME_NUMBERS: Final = {"openat2": 437, "pidfd_open": 434}
LOWER_NUMBERS: Final = {
    "x86_64": {"ioctl": 16, "setns": 308, "unshare": 272},
    "aarch64": {"ioctl": 29, "setns": 268, "unshare": 97},
}

PR_SET_NO_NEW_PRIVS: Final = 38
PR_SET_SECCOMP: Final = 22
SECCOMP_MODE_FILTER: Final = 2
SECCOMP_RET_ERRNO: Final = 0x00050000
SECCOMP_RET_ALLOW: Final = 0x7FFF0000
LOAD_NUMBER: Final = struct.pack("=HBBI", 0x20, 0, 0, 0)  # BPF_LD | BPF_W | BPF_ABS of seccomp_data.nr
JUMP_EQUAL: Final = 0x15
RETURN: Final = 0x06


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def restrict(answers: Mapping[str, int]) -> None:
    """Answer system calls with an errno from now on, in this process and all that it becomes. Raises OSError."""
    numbers = SAME_NUMBERS | LOWER_NUMBERS.get(platform.machine(), {})
    code = LOAD_NUMBER
    for name, answer in answers.items():
        code += _instruction(JUMP_EQUAL, numbers[name], 0, 1)
        code += _instruction(RETURN, SECCOMP_RET_ERRNO | answer)
    code += _instruction(RETURN, SECCOMP_RET_ALLOW)
    libc = ctypes.CDLL(None, use_errno=True)
    program = _Program(len(code) // 8, code)
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl(PR_SET_SECCOMP): {os.strerror(ctypes.get_errno())}")


def main() -> None:
    """Restrict, then become the program."""
    at = sys.argv.index("--")
    answers = dict(argument.split("=") for argument in sys.argv[1:at])
    restrict({name: getattr(errno, answer) for name, answer in answers.items()})
    os.execvp(sys.argv[at + 1], sys.argv[at + 1 :])  # noqa: S606  (no shell wanted)


if __name__ == "__main__":
    main()
