"""Run a command on which the kernel refuses a system call: ``python -m tests.refused pidfd_open ENOSYS COMMAND…``.

That is what a program meets on a kernel that does not know the call, or under a seccomp profile older than it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from typing import Final

NUMBERS: Final = {"pidfd_open": 434, "openat2": 437}
"""The same on every architecture, as all system calls since Linux 5.1."""

_PR_SET_SECCOMP: Final = 22
_PR_SET_NO_NEW_PRIVS: Final = 38
_SECCOMP_MODE_FILTER: Final = 2
_LOAD_NUMBER: Final = 0x20, 0, 0, 0  # BPF_LD | BPF_W | BPF_ABS, offset of seccomp_data.nr
_RETURN: Final = 0x06  # BPF_RET | BPF_K
_JUMP_IF_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_ALLOW: Final = 0x7FFF0000
_ERRNO: Final = 0x00050000


def refuse(call: str, code: int) -> None:
    """Have ``call`` fail with ``code`` in this process and all that it starts (seccomp(2))."""
    filters = (
        _LOAD_NUMBER,
        (_JUMP_IF_EQUAL, 0, 1, NUMBERS[call]),
        (_RETURN, 0, 0, _ERRNO | code),
        (_RETURN, 0, 0, _ALLOW),
    )
    code_bytes = b"".join(struct.pack("=HBBI", *one) for one in filters)
    buffer = ctypes.create_string_buffer(code_bytes, len(code_bytes))
    program = struct.pack("@HP", len(filters), ctypes.addressof(buffer))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, program, 0, 0):
        raise OSError(ctypes.get_errno(), f"no filter for {call}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    refuse(sys.argv[1], getattr(errno, sys.argv[2]))
    os.execvp(sys.argv[3], sys.argv[3:])  # noqa: S606  (that is what this is for)
