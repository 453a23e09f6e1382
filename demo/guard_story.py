"""The demo of guards: a real container is refused one of its files and given another, and both are told."""

from __future__ import annotations

import contextlib
import re
import threading
from pathlib import Path
from typing import Final

from argusd.proto import janus_pb2, janus_pb2_grpc
from demo.container import Container
from demo.daemon import Daemon
from demo.stage import EVENTS_TIMEOUT_S, NODE, POD, RPC_TIMEOUT_S, DemoError, run, start_container
from demo.terminal import Terminal

GUARD: Final = "demo"
DENIED: Final = "/data/secret"
ALLOWED: Final = "/data/public"
REFUSED: Final = "Operation not permitted"
ANSWER_LINE: Final = re.compile(rf"\] (?P<text><(?:ALLOW|DENY)> [A-Z_]+ (?:file|directory) '.*' \({POD}:{NODE}\).*)$")


class Seen:
    """What the daemon has told so far; written by the thread that reads its log."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._changed = threading.Condition()
        self.lines: list[str] = []

    def line(self, line: str) -> None:
        """Take a line of the log."""
        self._terminal.log(line)
        if match := ANSWER_LINE.search(line):
            with self._changed:
                self.lines.append(match["text"])
                self._changed.notify_all()

    def expect(self, beginning: str, start: int) -> None:
        """Wait for a line since line ``start``; DemoError when it does not come in time."""
        with self._changed:
            if not self._changed.wait_for(
                lambda: any(line.startswith(beginning) for line in self.lines[start:]), EVENTS_TIMEOUT_S
            ):
                raise DemoError(f"no line {beginning!r} within {EVENTS_TIMEOUT_S:.0f} s")


def main() -> int:
    """Tell the story; returns the exit code."""
    return run(_tell)


def _tell(terminal: Terminal, stack: contextlib.ExitStack) -> None:
    seen = Seen(terminal)
    terminal.heading("Start a container")
    container = start_container(terminal, stack)
    for path in (DENIED, ALLOWED):
        container.exec(["sh", "-c", f"echo the text of {path} >{path}"])

    terminal.heading("Start janusd")
    daemon = stack.enter_context(Daemon(seen.line, "-services=janus"))
    stub = janus_pb2_grpc.JanusdStub(daemon.channel)
    terminal.detail(f"pid {daemon.pid}, serves gRPC on {daemon.address}")

    terminal.heading("CreateGuard, as the controller calls it")
    handle = stub.CreateGuard(_guard(container), timeout=RPC_TIMEOUT_S)
    if list(handle.pid) != [container.pid]:
        raise DemoError(f"the handle names pids {list(handle.pid)}, the container's init is {container.pid}")
    terminal.detail(f"guarding pod {handle.podName} on {handle.nodeName}, pid {handle.pid[0]}")
    terminal.detail(f"open is denied for {DENIED} and allowed for {ALLOWED}")

    terminal.heading("Use the files")
    _try(terminal, container, f"cat {ALLOWED}", refused=False)
    seen.expect(f"<ALLOW> OPEN_PERM file '{ALLOWED}'", 0)
    _try(terminal, container, f"cat {DENIED}", refused=True)
    seen.expect(f"<DENY> OPEN_PERM file '{DENIED}'", 0)
    start = len(seen.lines)
    _try(terminal, container, f"echo new >/data/other && mv /data/other {DENIED} && cat {DENIED}", refused=True)
    seen.expect(f"<DENY> OPEN_PERM file '{DENIED}'", start)
    start = len(seen.lines)
    _try_from_the_host(terminal, container)
    seen.expect(f"<DENY> OPEN_PERM file '{DENIED}'", start)

    terminal.heading("What was seen")
    for word in ("ALLOW", "DENY"):
        terminal.detail(f"{word:<6} {sum(line.startswith(f'<{word}>') for line in seen.lines)}")
    terminal.good("the container was refused its file, also when another one had been put in its place")
    terminal.good("the other file was allowed, and both were told under the container's own paths")

    terminal.heading("DestroyGuard, and stop")
    stub.DestroyGuard(janus_pb2.JanusdConfig(nodeName=NODE, podName=POD, pid=handle.pid), timeout=RPC_TIMEOUT_S)
    if list(stub.GetGuardState(janus_pb2.Empty(), timeout=RPC_TIMEOUT_S)):
        raise DemoError("GetGuardState still names a guard after DestroyGuard")
    _try(terminal, container, f"cat {DENIED}", refused=False)
    daemon.stop()
    terminal.good("guard destroyed, daemon ended with exit code 0")
    container.close()
    terminal.good("container removed")


def _guard(container: Container) -> janus_pb2.JanusdConfig:
    subject = janus_pb2.JanusGuardSubject(deny=[DENIED], allow=[ALLOWED], event=["open"], tags={"app": "web"})
    return janus_pb2.JanusdConfig(
        name=GUARD, nodeName=NODE, podName=POD, cid=[container.uri_as("containerd")], subject=[subject]
    )


def _try(terminal: Terminal, container: Container, script: str, *, refused: bool) -> None:
    terminal.command(script)
    done = container.try_exec(["sh", "-c", script])
    terminal.output(done.stdout + done.stderr)
    if (done.returncode != 0) != refused or (REFUSED in done.stderr) != refused:
        raise DemoError(f"{script!r} ended with exit code {done.returncode}: {done.stderr.strip()}")


def _try_from_the_host(terminal: Terminal, container: Container) -> None:
    """A process of the host is refused the file as well, and told of under the container's path."""
    path = Path(f"{container.root}{DENIED}")
    terminal.command(f"cat {path}", where="host")
    try:
        path.read_text()
    except PermissionError as error:
        terminal.output(f"cat: {path}: {error.strerror}")
    else:
        raise DemoError(f"the host could read {path}")
