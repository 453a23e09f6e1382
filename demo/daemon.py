"""The daemon as a child process whose log is read line by line."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

import grpc

PROJECT: Final = Path(__file__).resolve().parent.parent
LISTENING: Final = re.compile(r"Server listening on (\S+)")
START_TIMEOUT_S: Final = 10.0
STOP_TIMEOUT_S: Final = 10.0


class DaemonError(Exception):
    """The daemon did not start, or did not stop in order."""


class Daemon:
    """``python -m argusd`` on a free port of 127.0.0.1; ``on_line`` is called for every line of its log."""

    def __init__(self, on_line: Callable[[str], None], *flags: str) -> None:
        """``flags`` come behind its own."""
        self._on_line = on_line
        self._flags = flags
        self._lines: list[str] = []
        self._settled = threading.Event()
        """Set when the daemon listens, or has ended without."""
        self.address = ""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "argusd", "-address=127.0.0.1:0", "-log=text", "-log_dir=", *self._flags],
            cwd=PROJECT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="backslashreplace",
        )
        self._reader = threading.Thread(target=self._read, name="daemon-log", daemon=True)
        self._reader.start()
        self._settled.wait(START_TIMEOUT_S)
        if not self.address:
            self._end_at_once()
            raise DaemonError("the daemon did not start; its last words:\n" + "\n".join(self._lines or ["(none)"]))
        self.channel = grpc.insecure_channel(self.address)
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()
        self._end_at_once()

    @property
    def pid(self) -> int:
        """The daemon's process."""
        return self._process.pid

    def stop(self) -> None:
        """SIGTERM, then wait; DaemonError when it does not end in order."""
        self.channel.close()
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise DaemonError(f"the daemon still runs {STOP_TIMEOUT_S:.0f} s after SIGTERM") from None
        self._reader.join()
        if code != os.EX_OK:
            raise DaemonError(f"the daemon ended with exit code {code}")

    def _end_at_once(self) -> None:
        self._process.kill()  # does nothing to a process that has been waited for
        self._process.wait()
        self._reader.join()

    def _read(self) -> None:
        if self._process.stderr is None:
            return
        with self._process.stderr as log:
            for line in map(str.rstrip, log):
                self._lines.append(line)
                self._on_line(line)
                if not self.address and (match := LISTENING.search(line)):
                    self.address = match[1]
                    self._settled.set()
        self._settled.set()
