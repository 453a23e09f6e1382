"""The daemon to be measured. Its lines are read by the benchmark itself, so that no thread of ours disturbs."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import grpc

from argusd.proto import argus_pb2, argus_pb2_grpc, janus_pb2, janus_pb2_grpc
from benchmarks import processes
from benchmarks.processes import Memory

PROJECT: Final = Path(__file__).resolve().parent.parent
BINARY: Final = PROJECT / "dist" / "argusd"
TIMEOUT_S: Final = 60.0
FILE_POLL_S: Final = 0.001
_LISTENING: Final = re.compile(rb"Server listening on ([^\s\"]+)")


def on_core(core: int) -> list[str]:
    """What to put before a command so that it runs on one core only."""
    return ["taskset", "--cpu-list", str(core)]


class MeasuredDaemon:
    """``dist/argusd``, in one of two ways.

    With a ``folder`` as users run it, with default flags: JSON lines on stderr, which is a file (``log``), and text in
    ``-log_dir``. Without one only text lines on stderr, a pipe that the benchmark reads.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        program: Sequence[str] = (str(BINARY),),
        flags: Sequence[str] = (),
        core: int | None = None,
    ) -> None:
        """Not started before the ``with`` block; ``core`` is the only one on which it may run."""
        self._folder = folder
        self._command = [*(on_core(core) if core is not None else ()), *program, "-address=127.0.0.1:0"]
        self._command += [f"-log_dir={folder / 'log_dir'}"] if folder else ["-log=text", "-log_dir="]
        self._command += flags
        self._said = b""
        self._log_fd = -1
        self._process: subprocess.Popen[bytes]
        self.channel: grpc.Channel
        self.address = ""

    def __enter__(self) -> Self:
        """Start it and wait until it listens."""
        if self._folder is None:
            self._log_fd, write_fd = os.pipe()
        else:
            (self._folder / "log_dir").mkdir(parents=True, exist_ok=True)
            write_fd = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
            self._log_fd = os.open(self.log, os.O_RDONLY)
        self._process = subprocess.Popen(self._command, cwd=PROJECT, stdin=subprocess.DEVNULL, stderr=write_fd)
        os.close(write_fd)
        try:
            self.address = self._wait_for(_LISTENING)[1].decode()
        except BaseException:
            self._end()
            raise
        self.channel = self.new_channel()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End it."""
        self.channel.close()
        self._end()

    def _end(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        os.close(self._log_fd)
        try:
            self._process.wait(TIMEOUT_S)
        finally:
            self._process.kill()
            self._process.wait()

    @property
    def log(self) -> Path:
        """Where stderr goes when the daemon has a folder."""
        if self._folder is None:
            raise ValueError("this daemon writes to a pipe")
        return self._folder / "stderr"

    @property
    def pid(self) -> int:
        """The process that was started: of the binary the launcher, whose child's child is Python."""
        return self._process.pid

    def new_channel(self) -> grpc.Channel:
        """A connection of its own, for the caller to close."""
        return grpc.insecure_channel(self.address, [("grpc.use_local_subchannel_pool", 1)])

    def watch(self, folder: Path, events: Sequence[str]) -> None:
        """Watch a tree as this process sees it. All of it is armed then, when that takes no longer than 4 s."""
        subject = argus_pb2.ArgusWatcherSubject(path=[str(folder)], event=events, recursive=True)
        request = argus_pb2.ArgusdConfig(
            name="benchmark", nodeName="node", podName="pod", pid=[os.getpid()], subject=[subject]
        )
        argus_pb2_grpc.ArgusdStub(self.channel).CreateWatch(request, timeout=TIMEOUT_S)

    def guard(self, pod: str, *, deny: Sequence[Path], allow: Sequence[Path], owner: bool) -> None:
        """Guard paths against being opened, as this process sees them; ``owner``: this process and its children may."""
        subject = janus_pb2.JanusGuardSubject(
            deny=map(str, deny), allow=map(str, allow), event=["open"], autoAllowOwner=owner
        )
        request = janus_pb2.JanusdConfig(
            name="benchmark", nodeName="node", podName=pod, pid=[os.getpid()], subject=[subject]
        )
        janus_pb2_grpc.JanusdStub(self.channel).CreateGuard(request, timeout=TIMEOUT_S)

    def keep_reading(self) -> None:
        """Throw away what it says from now on."""
        threading.Thread(target=self._throw_away, daemon=True).start()

    def _throw_away(self) -> None:
        with contextlib.suppress(OSError):  # it is closed in the end
            while os.read(self._log_fd, 1 << 20):
                pass

    def says(self, text: bytes, timeout_s: float) -> bool:
        """Whether a line with ``text`` has come since the last one that was found, or comes in time."""
        deadline = time.monotonic() + timeout_s
        while (place := self._said.find(text)) < 0:
            if not self._hear(deadline):
                return False
        self._said = self._said[place + len(text) :]
        return True

    def cpu_s(self) -> float:
        """The time that its processes have run."""
        return processes.cpu_s(self.pid)

    def memory(self) -> Memory:
        """What its processes hold."""
        return processes.memory(self.pid)

    def thread_count(self) -> int:
        """The threads of its processes."""
        return processes.thread_count(self.pid)

    def _wait_for(self, pattern: re.Pattern[bytes]) -> re.Match[bytes]:
        deadline = time.monotonic() + TIMEOUT_S
        while not (match := pattern.search(self._said)):
            if not self._hear(deadline):
                raise TimeoutError(f"the daemon did not start: {self._said.decode()}")
        return match

    def _hear(self, deadline: float) -> bool:
        """Take up what it says next; False when it says nothing in time."""
        while True:
            # A file is always readable: there is nothing to wait for but time.
            if self._folder is None and not select.select([self._log_fd], [], [], _left_s(deadline))[0]:
                return False
            data = os.read(self._log_fd, 1 << 20)
            if data:
                self._said += data
                return True
            if self._folder is None or self._process.poll() is not None:
                raise RuntimeError(f"the daemon has ended; its last words: {self._said[-1000:].decode()}")
            if not _left_s(deadline):
                return False
            time.sleep(min(FILE_POLL_S, _left_s(deadline)))


def _left_s(deadline: float) -> float:
    return max(deadline - time.monotonic(), 0.0)
