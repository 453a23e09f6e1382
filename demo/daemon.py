"""The daemon as a child process whose log is read line by line."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

import grpc

PROJECT: Final = Path(__file__).resolve().parent.parent
START_TIMEOUT_S: Final = 10.0
START_STEP_S: Final = 0.1
STOP_TIMEOUT_S: Final = 10.0


class DaemonError(Exception):
    """The daemon did not start, or did not stop in order."""


class Daemon:
    """``python -m argusd`` on a free port of 127.0.0.1; ``on_line`` is called for every line of its log."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._lines: list[str] = []
        self.address = f"127.0.0.1:{free_port()}"
        self.channel = grpc.insecure_channel(self.address)

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "argusd", f"-address={self.address}", "-log=text", "-log_dir="],
            cwd=PROJECT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="backslashreplace",
        )
        self._reader = threading.Thread(target=self._read, name="daemon-log", daemon=True)
        self._reader.start()
        self._wait_until_serving()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

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

    def kill(self) -> None:
        """Make sure that nothing is left running. May be called twice, and after :meth:`stop`."""
        self.channel.close()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()
        self._reader.join()

    def _wait_until_serving(self) -> None:
        ready = grpc.channel_ready_future(self.channel)
        for _ in range(int(START_TIMEOUT_S / START_STEP_S)):
            with contextlib.suppress(grpc.FutureTimeoutError):
                ready.result(START_STEP_S)
                return
            if self._process.poll() is not None:
                break
        self.kill()
        raise DaemonError("the daemon did not start; its last words:\n" + "\n".join(self._lines or ["(none)"]))

    def _read(self) -> None:
        if self._process.stderr is None:
            return
        with self._process.stderr as log:
            for line in log:
                self._lines.append(line.rstrip("\n"))
                self._on_line(line.rstrip("\n"))


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
