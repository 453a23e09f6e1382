"""A file system whose server answers nothing of one kind: by default, to open its one file ``f``."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import signal
import struct
from pathlib import Path
from types import TracebackType
from typing import Final, Self

# <linux/fuse.h>
IN_HEADER: Final = struct.Struct("=IIQQIIIHH")
OUT_HEADER: Final = struct.Struct("=IiQ")
ATTRIBUTES: Final = struct.Struct("=6Q10I")
DIRECTORY, FILE, BELOW = 1, 2, 3
NAMES: Final = {b"f": FILE, b"d": BELOW}
REQUEST_BYTES: Final = 1 << 20
VALID_S: Final = 0  # the kernel keeps nothing, so that it asks each time
MNT_DETACH: Final = 2
OPERATIONS: Final = {"lookup": 1, "getattr": 3, "open": 14, "statfs": 17, "opendir": 27, "readdir": 28, "access": 34}
UNANSWERED: Final = {2, 42}  # FUSE_FORGET and FUSE_BATCH_FORGET

_libc: Final = ctypes.CDLL(None, use_errno=True)


class SilentFileSystem:
    """Mounted from the start, served by a child process. It holds a file ``f`` and an empty directory ``d``."""

    def __init__(self, place: Path, mute: str = "open", *, from_now: bool = True) -> None:
        """Mount on the folder ``place``; OSError where FUSE cannot be had.

        ``mute`` is the operation (of OPERATIONS) that is not answered, from now on or from :meth:`fall_silent` on.
        """
        self._place = place
        self._wait, self._say = os.pipe2(os.O_CLOEXEC)
        device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
        try:
            if _libc.mount(b"silent", os.fsencode(place), b"fuse", 0, options) != 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            self._pid = os.fork()
            if self._pid == 0:
                try:
                    _serve(device, self._wait, OPERATIONS[mute])
                finally:
                    os._exit(0)
        finally:
            os.close(device)
        if from_now:
            self.fall_silent()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def fall_silent(self) -> None:
        """Answer the muted operation no more."""
        os.write(self._say, b"x")

    def end_server(self) -> None:
        """Let everything fail that waits, and all that comes."""
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        self._pid = 0

    def close(self) -> None:
        """End the server and unmount."""
        self.end_server()
        _libc.umount2(os.fsencode(self._place), MNT_DETACH)
        for end in (self._wait, self._say):
            os.close(end)


def _attributes(node: int) -> bytes:
    mode = 0o100644 if node == FILE else 0o040755
    return ATTRIBUTES.pack(node, 1, 1, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def _answer(opcode: int, node: int, body: bytes) -> bytes | int:  # noqa: PLR0911  (one for each request)
    """The answer to a request: its body, or an errno."""
    match opcode:
        case 26:  # FUSE_INIT
            major, minor = struct.unpack_from("=II", body)
            return struct.pack("=IIIIHHIIHHI28x", major, min(minor, 31), 65536, 0, 12, 10, 65536, 1, 1, 0, 0)
        case 1:  # FUSE_LOOKUP
            found = NAMES.get(body.rstrip(b"\0")) if node == DIRECTORY else None
            if found is None:
                return errno.ENOENT
            return struct.pack("=QQQQII", found, 0, VALID_S, VALID_S, 0, 0) + _attributes(found)
        case 3:  # FUSE_GETATTR
            return struct.pack("=QII", VALID_S, 0, 0) + _attributes(node)
        case 14 | 27:  # FUSE_OPEN, FUSE_OPENDIR
            return struct.pack("=QII", 0, 0, 0)
        case 28:  # FUSE_READDIR: all at once, or nothing more
            if node != DIRECTORY or struct.unpack_from("=QQ", body)[1]:
                return b""
            return b"".join(_entry(number, name) for number, (name, _) in enumerate(NAMES.items(), 1))
        case 17:  # FUSE_STATFS
            return bytes(80)
        case 18 | 29 | 34:  # FUSE_RELEASE, FUSE_RELEASEDIR, FUSE_ACCESS
            return b""
        case _:
            return errno.ENOSYS


def _entry(number: int, name: bytes) -> bytes:
    """One struct fuse_dirent."""
    kind = 8 if NAMES[name] == FILE else 4
    size = -(-len(name) // 8) * 8
    return struct.pack("=QQII", NAMES[name], number, len(name), kind) + name.ljust(size, b"\0")


def _serve(device: int, wait: int, mute: int) -> None:
    silent = False
    while request := os.read(device, REQUEST_BYTES):
        silent = silent or bool(select.select([wait], [], [], 0)[0])
        _, opcode, unique, node, *_ = IN_HEADER.unpack_from(request)
        if opcode in UNANSWERED or (silent and opcode == mute):
            continue
        answer = _answer(opcode, node, request[IN_HEADER.size :])
        if isinstance(answer, int):
            os.write(device, OUT_HEADER.pack(OUT_HEADER.size, -answer, unique))
        else:
            os.write(device, OUT_HEADER.pack(OUT_HEADER.size + len(answer), 0, unique) + answer)
