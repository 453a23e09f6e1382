"""A file system whose server answers every question but that to open its one file ``f``."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
from pathlib import Path
from types import TracebackType
from typing import Final, Self

# <linux/fuse.h>
IN_HEADER: Final = struct.Struct("=IIQQIIIHH")
OUT_HEADER: Final = struct.Struct("=IiQ")
ATTRIBUTES: Final = struct.Struct("=6Q10I")
FILE: Final = 2  # the directory is 1
REQUEST_BYTES: Final = 1 << 20
VALID_S: Final = 1000
MNT_DETACH: Final = 2

_libc: Final = ctypes.CDLL(None, use_errno=True)


class SilentFileSystem:
    """Mounted from the start, served by a child process."""

    def __init__(self, place: Path) -> None:
        """Mount on the folder ``place``; OSError where FUSE cannot be had."""
        self._place = place
        device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
        try:
            if _libc.mount(b"silent", os.fsencode(place), b"fuse", 0, options) != 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            self._pid = os.fork()
            if self._pid == 0:
                try:
                    _serve(device)
                finally:
                    os._exit(0)
        finally:
            os.close(device)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def end_server(self) -> None:
        """Let every open fail that waits, and all that come."""
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        self._pid = 0

    def close(self) -> None:
        """End the server and unmount."""
        self.end_server()
        _libc.umount2(os.fsencode(self._place), MNT_DETACH)


def _attributes(node: int) -> bytes:
    mode = 0o100644 if node == FILE else 0o040755
    return ATTRIBUTES.pack(node, 1, 1, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def _answer(opcode: int, node: int, body: bytes) -> bytes | int | None:
    """The answer to a request: its body, an errno, or none at all."""
    match opcode:
        case 26:  # FUSE_INIT
            major, minor = struct.unpack_from("=II", body)
            return struct.pack("=IIIIHHIIHHI28x", major, min(minor, 31), 65536, 0, 12, 10, 65536, 1, 1, 0, 0)
        case 1:  # FUSE_LOOKUP
            if body.rstrip(b"\0") != b"f":
                return errno.ENOENT
            return struct.pack("=QQQQII", FILE, 0, VALID_S, VALID_S, 0, 0) + _attributes(FILE)
        case 3:  # FUSE_GETATTR
            return struct.pack("=QII", VALID_S, 0, 0) + _attributes(node)
        case 17:  # FUSE_STATFS
            return bytes(80)
        case _:  # FUSE_OPEN waits for ever; FUSE_FORGET and FUSE_BATCH_FORGET want no answer
            return None if opcode in {14, 2, 42} else errno.ENOSYS


def _serve(device: int) -> None:
    while request := os.read(device, REQUEST_BYTES):
        _, opcode, unique, node, *_ = IN_HEADER.unpack_from(request)
        answer = _answer(opcode, node, request[IN_HEADER.size :])
        if isinstance(answer, int):
            os.write(device, OUT_HEADER.pack(OUT_HEADER.size, -answer, unique))
        elif answer is not None:
            os.write(device, OUT_HEADER.pack(OUT_HEADER.size + len(answer), 0, unique) + answer)
