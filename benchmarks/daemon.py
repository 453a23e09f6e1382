"""A daemon process to be measured: its lines are read by the benchmark itself, so that no thread of ours disturbs."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import grpc

from argusd.proto import argus_pb2, argus_pb2_grpc, janus_pb2, janus_pb2_grpc

PROJECT: Final = Path(__file__).resolve().parent.parent
TIMEOUT_S: Final = 60.0
_LISTENING: Final = re.compile(rb"Server listening on ([^\s\"]+)")


def on_core(core: int) -> list[str]:
    """What to put before a command so that it runs on one core only."""
    return ["taskset", "--cpu-list", str(core)]


class MeasuredDaemon:
    """``python -m argusd`` with text lines in a pipe."""

    def __init__(self, *, module: str = "argusd", services: str = "argus", core: int | None = None) -> None:
        """Not started before the ``with`` block; ``core`` is the only one on which it may run."""
        self._module = module
        self._services = services
        self._core = core
        self._log = b""
        self._process: subprocess.Popen[bytes]
        self._log_fd = -1

    def __enter__(self) -> Self:
        """Start it and wait until it listens."""
        self._log_fd, write_fd = os.pipe()
        command = [sys.executable, "-m", self._module, "-address=127.0.0.1:0", "-log=text", "-log_dir="]
        command.append(f"-services={self._services}")
        if self._core is not None:
            command = [*on_core(self._core), *command]
        self._process = subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.DEVNULL, stderr=write_fd)
        os.close(write_fd)
        self._channel = grpc.insecure_channel(self._wait_for(_LISTENING)[1].decode())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End it."""
        self._channel.close()
        self._process.send_signal(signal.SIGTERM)
        os.close(self._log_fd)
        try:
            self._process.wait(TIMEOUT_S)
        finally:
            self._process.kill()
            self._process.wait()

    def watch(self, folder: Path, events: Sequence[str]) -> None:
        """Watch a tree as this process sees it. All of it is armed then, when that takes no longer than 4 s."""
        subject = argus_pb2.ArgusWatcherSubject(path=[str(folder)], event=events, recursive=True)
        request = argus_pb2.ArgusdConfig(
            name="benchmark", nodeName="node", podName="pod", pid=[os.getpid()], subject=[subject]
        )
        argus_pb2_grpc.ArgusdStub(self._channel).CreateWatch(request, timeout=TIMEOUT_S)

    def guard(self, pod: str, *, deny: Sequence[Path], allow: Sequence[Path], owner: bool) -> None:
        """Guard paths against being opened, as this process sees them; ``owner``: this process and its children may."""
        subject = janus_pb2.JanusGuardSubject(
            deny=map(str, deny), allow=map(str, allow), event=["open"], autoAllowOwner=owner
        )
        request = janus_pb2.JanusdConfig(
            name="benchmark", nodeName="node", podName=pod, pid=[os.getpid()], subject=[subject]
        )
        janus_pb2_grpc.JanusdStub(self._channel).CreateGuard(request, timeout=TIMEOUT_S)

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
        while (place := self._log.find(text)) < 0:
            left_s = deadline - time.monotonic()
            if not select.select([self._log_fd], [], [], max(left_s, 0.0))[0]:
                return False
            data = os.read(self._log_fd, 1 << 20)
            if not data:
                raise RuntimeError(f"the daemon has ended; its last words: {self._log[-1000:].decode()}")
            self._log += data
        self._log = self._log[place + len(text) :]
        return True

    def cpu_s(self) -> float:
        """The time that its threads have run (/proc/PID/task/TID/schedstat, in nanoseconds)."""
        tasks = Path(f"/proc/{self._process.pid}/task")
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir()) / 1e9

    def _wait_for(self, pattern: re.Pattern[bytes]) -> re.Match[bytes]:
        while not (match := pattern.search(self._log)):
            if not select.select([self._log_fd], [], [], TIMEOUT_S)[0]:
                raise TimeoutError(f"the daemon did not start: {self._log.decode()}")
            data = os.read(self._log_fd, 1 << 16)
            if not data:
                raise RuntimeError(f"the daemon did not start: {self._log.decode()}")
            self._log += data
        return match
