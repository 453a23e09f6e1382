"""A real daemon process for tests: ``with Daemon("-log=text") as daemon: daemon.channel …``."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import grpc

from argusd.proto import argus_pb2, argus_pb2_grpc, janus_pb2, janus_pb2_grpc
from tests import waiting

ROOT: Final = Path(__file__).parent.parent
COMMAND: Final = (sys.executable, "-m", "argusd")
WAIT_S: Final = 10.0

until = functools.partial(waiting.until, timeout_s=WAIT_S)
_LISTENING: Final = re.compile(r"Server listening on ([^\s\"]+)")


class Daemon:
    """One argusd on a free port of 127.0.0.1; its log is kept by a thread, so that it never waits for the test."""

    def __init__(
        self,
        *flags: str,
        command: Sequence[str] = COMMAND,
        environment: Mapping[str, str] | None = None,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        """``flags`` come behind ``-address 127.0.0.1:0 -log_dir=``, and so may replace them."""
        self._command = [*command, "-address", "127.0.0.1:0", "-log_dir=", *flags]
        self._environment = {**os.environ, **(environment or {})}
        self._credentials = credentials
        self._changed = threading.Condition()
        self._lines: list[str] = []
        self._ended = False
        self._channel: grpc.Channel | None = None
        self.address = ""
        self.process: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(self._command, stderr=subprocess.PIPE, cwd=ROOT, env=self._environment)
        self._reader = threading.Thread(target=self._read, name="daemon-log", daemon=True)
        self._reader.start()
        try:
            match = _LISTENING.search(self.wait_for(lambda line: bool(_LISTENING.search(line))))
        except BaseException:
            self.kill()
            raise
        assert match
        self.address = match[1]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def channel(self) -> grpc.Channel:
        """A channel to the daemon, closed with it."""
        if self._channel is None:
            self._channel = self.new_channel()
        return self._channel

    @property
    def stub(self) -> argus_pb2_grpc.ArgusdStub:
        """The service of watches, on :attr:`channel`."""
        return argus_pb2_grpc.ArgusdStub(self.channel)

    @property
    def guards(self) -> janus_pb2_grpc.JanusdStub:
        """The service of guards, on :attr:`channel`."""
        return janus_pb2_grpc.JanusdStub(self.channel)

    @property
    def pid(self) -> int:
        """The daemon's process id."""
        return self.process.pid

    @property
    def lines(self) -> list[str]:
        """Every line so far, without line ends."""
        with self._changed:
            return list(self._lines)

    @property
    def events(self) -> list[dict[str, Any]]:
        """The event lines so far, parsed; JSON style only."""
        records = (json.loads(line) for line in self.lines if line.startswith("{"))
        return [record for record in records if "event" in record]

    def new_channel(self) -> grpc.Channel:
        """A channel of its own, for the caller to close."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        if self._credentials is not None:
            return grpc.secure_channel(self.address, self._credentials, options)
        return grpc.insecure_channel(self.address, options)

    def wait_for(self, matches: Callable[[str], bool], timeout_s: float = WAIT_S, *, after: int = 0) -> str:
        """The first line, from line ``after`` on, that ``matches``; TimeoutError with the log when none comes."""
        deadline = time.monotonic() + timeout_s
        seen = after
        with self._changed:
            while True:
                for line in self._lines[seen:]:
                    if matches(line):
                        return line
                seen = max(seen, len(self._lines))
                remaining_s = deadline - time.monotonic()
                if self._ended or remaining_s <= 0 or not self._changed.wait(remaining_s):
                    if len(self._lines) > seen:
                        continue
                    log = "\n".join(self._lines[-50:])
                    raise TimeoutError(f"no such line within {timeout_s} s; the end of the log:\n{log}")

    def wait_for_text(self, text: str, timeout_s: float = WAIT_S, *, after: int = 0) -> str:
        """Like :meth:`wait_for`, for a line that holds ``text``."""
        return self.wait_for(lambda line: text in line, timeout_s, after=after)

    def create_watch(self, pid: int, *paths: str, **fields: Any) -> argus_pb2.ArgusdHandle:
        """Watch paths as the process ``pid`` sees them; ``fields`` are those of the config or else of the subject."""
        config = {key: fields.pop(key) for key in ("name", "nodeName", "podName", "logFormat") if key in fields}
        subject = argus_pb2.ArgusWatcherSubject(path=paths, **{"event": ["all"], **fields})
        request = argus_pb2.ArgusdConfig(
            **{"name": "w1", "nodeName": "node1", "podName": "pod1", **config}, pid=[pid], subject=[subject]
        )
        handle: argus_pb2.ArgusdHandle = self.stub.CreateWatch(request, timeout=WAIT_S)
        return handle

    def create_guard(self, pid: int, *deny: str, **fields: Any) -> janus_pb2.JanusdHandle:
        """Guard paths as the process ``pid`` sees them; ``fields`` are those of the config or else of the subject."""
        config = {key: fields.pop(key) for key in ("name", "nodeName", "podName", "logFormat") if key in fields}
        subject = janus_pb2.JanusGuardSubject(deny=deny, **{"event": ["open"], **fields})
        request = janus_pb2.JanusdConfig(
            **{"name": "g1", "nodeName": "node1", "podName": "pod1", **config}, pid=[pid], subject=[subject]
        )
        handle: janus_pb2.JanusdHandle = self.guards.CreateGuard(request, timeout=WAIT_S)
        return handle

    def guard_state(self) -> list[tuple[str, str, list[int]]]:
        """What GetGuardState says, as (node, pod, pids)."""
        handles = self.guards.GetGuardState(janus_pb2.Empty(), timeout=WAIT_S)
        return [(handle.nodeName, handle.podName, list(handle.pid)) for handle in handles]

    def state(self) -> list[tuple[str, str, list[int]]]:
        """What GetWatchState says, as (node, pod, pids)."""
        handles = self.stub.GetWatchState(argus_pb2.Empty(), timeout=WAIT_S)
        return [(handle.nodeName, handle.podName, list(handle.pid)) for handle in handles]

    def stop(self, timeout_s: float = WAIT_S) -> int:
        """Ask for an orderly end and return the exit code; TimeoutExpired when it does not come."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout_s)
        self._reader.join(timeout_s)
        return code

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait()
        self._reader.join()

    def close(self) -> None:
        """End it in order, or at once when that takes too long. May be called twice."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        asked = self.process.poll() is None
        try:
            code = self.stop()
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        assert code == 0 or not asked, f"exit code {code}; the end of the log:\n" + "\n".join(self._lines[-50:])

    def _read(self) -> None:
        assert self.process.stderr
        with self.process.stderr as stderr:
            for line in stderr:
                with self._changed:
                    self._lines.append(line.decode().rstrip("\n"))
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


def run_to_end(*flags: str, command: Sequence[str] = COMMAND, name: str = "") -> subprocess.CompletedProcess[str]:
    """Run a daemon that is expected to end by itself; ``name`` is what it is to be called as."""
    environment = {**os.environ, **({"STATICX_PROG_PATH": name} if name else {})}
    return subprocess.run(
        [*command, *flags], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=WAIT_S, check=False
    )
