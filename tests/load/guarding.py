"""A daemon that guards and watches what it is told, and whose death is looked at closely."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import grpc

from argusd.proto import argus_pb2, argus_pb2_grpc, janus_pb2, janus_pb2_grpc
from tests.load.watched import CALL_S, LISTENING, ROOT

DEATH_S: Final = 10.0
"""Longer than any death may take."""


class GuardingDaemon:
    """Both services, or those that are named, in one process; what it says is thrown away, or read by nobody."""

    def __init__(self, *, services: str = "argus,janus", module: str = "argusd", blocked: bool = False) -> None:
        """``blocked``: its log goes to a pipe that nobody reads any more once it listens."""
        self._command = [sys.executable, "-m", module, "-address=127.0.0.1:0", "-log_dir=", "-log=json"]
        self._command.append(f"-services={services}")
        self._blocked = blocked
        self.process: subprocess.Popen[bytes]
        self.channel: grpc.Channel

    def __enter__(self) -> Self:
        self._log, log = os.pipe()
        try:
            self.process = subprocess.Popen(self._command, cwd=ROOT, stderr=log)
        finally:
            os.close(log)
        said = b""
        while LISTENING not in said or b"\n" not in said.split(LISTENING)[1]:
            more = os.read(self._log, 1 << 16)
            assert more, f"the daemon has ended: {said.decode()}"
            said += more
        address = said.split(LISTENING)[1].split(b'"')[0].split()[0].decode()
        if not self._blocked:
            self._reader = threading.Thread(target=self._read, daemon=True)
            self._reader.start()
        self.channel = grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.channel.close()
        self.process.kill()
        self.process.wait(DEATH_S)
        if not self._blocked:
            self._reader.join()
        os.close(self._log)

    def _read(self) -> None:
        while os.read(self._log, 1 << 20):
            pass

    def guard_request(self, deny: Sequence[Path], allow: Sequence[Path] = (), **fields: Any) -> janus_pb2.JanusdConfig:
        """Guard paths as this process sees them; ``fields`` are those of the config or else of the subject."""
        config: dict[str, Any] = {"name": "g", "nodeName": "n", "podName": "pod", "pid": [os.getpid()]}
        config |= {key: fields.pop(key) for key in config if key in fields}
        paths = {"deny": [str(path) for path in deny], "allow": [str(path) for path in allow]}
        subject = janus_pb2.JanusGuardSubject(**{"event": ["all"], **paths, **fields})
        return janus_pb2.JanusdConfig(**config, subject=[subject])

    @property
    def guards(self) -> janus_pb2_grpc.JanusdStub:
        """The service of guards."""
        return janus_pb2_grpc.JanusdStub(self.channel)

    def guard(self, deny: Sequence[Path], allow: Sequence[Path] = (), **fields: Any) -> None:
        """As :meth:`guard_request`, and wait until it stands."""
        self.guards.CreateGuard(self.guard_request(deny, allow, **fields), timeout=CALL_S)

    def watch(self, *paths: Path, **fields: Any) -> None:
        """Watch paths as this process sees them."""
        subject = argus_pb2.ArgusWatcherSubject(**{"path": map(str, paths), "event": ["all"], **fields})
        request = argus_pb2.ArgusdConfig(name="w", nodeName="n", podName="pod", pid=[os.getpid()], subject=[subject])
        argus_pb2_grpc.ArgusdStub(self.channel).CreateWatch(request, timeout=CALL_S)

    def end(self, how: signal.Signals) -> float:
        """End it; how long that has taken until the last thread was gone, seconds. TimeoutExpired when it is stuck."""
        begun = time.monotonic()
        self.process.send_signal(how)
        code = self.process.wait(DEATH_S if how != signal.SIGTERM else CALL_S)
        assert code == (-how if how != signal.SIGTERM else 0), f"exit code {code} after {how.name}"
        return time.monotonic() - begun

    def native_threads(self) -> list[str]:
        """The names of its threads that are neither Python's nor gRPC's, which come as they are needed."""
        names = (task.read_text().strip() for task in Path(f"/proc/{self.process.pid}/task").glob("*/comm"))
        return sorted(name for name in names if name not in {"python", "event_engine"})
