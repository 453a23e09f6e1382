"""The demo: a daemon, a real container, file work inside it, and what the daemon reports of that."""

from __future__ import annotations

import contextlib
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

import grpc

from argusd.proto import argus_pb2, argus_pb2_grpc
from demo.container import Container
from demo.daemon import Daemon
from demo.stage import EVENTS_TIMEOUT_S, NODE, POD, RPC_TIMEOUT_S, DemoError, run, start_container
from demo.terminal import Terminal

WATCHER: Final = "demo"
EVENTS: Final = ("create", "modify", "delete", "move", "attrib")
WORK: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    ("echo 'listen 80' >/data/site.conf", ("CREATE file '/data/site.conf'", "MODIFY file '/data/site.conf'")),
    ("echo 'listen 443' >>/data/site.conf", ("MODIFY file '/data/site.conf'",)),
    (
        "mv /data/site.conf /data/site.old",
        ("MOVED_FROM file '/data/site.conf'", "MOVED_TO file '/data/site.old'"),
    ),
    ("chmod 600 /data/site.old", ("ATTRIB file '/data/site.old'",)),
    (
        "mkdir /data/keys && echo secret >/data/keys/id",
        ("CREATE directory '/data/keys'", "CREATE file '/data/keys/id'"),
    ),
    (
        "rm -r /data/keys /data/site.old",
        ("DELETE file '/data/keys/id'", "DELETE directory '/data/keys'", "DELETE file '/data/site.old'"),
    ),
)
"""Commands for the container's shell, each with log lines that must follow, in that order."""
EVENT_LINE: Final = re.compile(rf"\] (?P<text>(?P<event>[A-Z_]+) (?:file|directory) '.*' \({POD}:{NODE}\).*)$")


class Seen:
    """What the daemon has reported so far; written by two threads, waited for by the story."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._changed = threading.Condition()
        self.lines: list[str] = []
        self.logged: Counter[str] = Counter()
        self.counted: Counter[str] = Counter()

    def line(self, line: str) -> None:
        """Take a line of the log."""
        self._terminal.log(line)
        if match := EVENT_LINE.search(line):
            with self._changed:
                self.lines.append(match["text"])
                self.logged[match["event"].lower()] += 1
                self._changed.notify_all()

    def follow(self, stream: Iterable[argus_pb2.ArgusdMetricsHandle]) -> None:
        """Take the messages of a metrics stream until it ends."""
        with contextlib.suppress(grpc.RpcError):  # ends with the daemon, or when we cancel it
            for message in stream:
                with self._changed:
                    self.counted[message.event] += 1
                    self._terminal.metric(message.argusWatcher, message.event, self.counted[message.event])
                    self._changed.notify_all()

    def wait_for(self, condition: Callable[[], bool]) -> bool:
        """Wait until the condition holds; False when it does not in time."""
        with self._changed:
            return self._changed.wait_for(condition, EVENTS_TIMEOUT_S)

    def has(self, expected: tuple[str, ...], start: int) -> bool:
        """Whether all these were logged since line ``start``, in this order."""
        rest = iter(self.lines[start:])
        return all(any(line.startswith(wanted) for line in rest) for wanted in expected)


def main() -> int:
    """Tell the story; returns the exit code."""
    return run(_tell)


def _tell(terminal: Terminal, stack: contextlib.ExitStack) -> None:
    seen = Seen(terminal)
    terminal.heading("Start a container")
    container = start_container(terminal, stack)

    terminal.heading("Start argusd")
    daemon = stack.enter_context(Daemon(seen.line))
    stub = argus_pb2_grpc.ArgusdStub(daemon.channel)
    terminal.detail(f"pid {daemon.pid}, serves gRPC on {daemon.address}")

    terminal.heading("RecordMetrics and CreateWatch, as the controller calls them")
    stream = stub.RecordMetrics(argus_pb2.Empty())
    stack.callback(stream.cancel)
    stream.initial_metadata()  # comes when the daemon has the stream: it counts from here on
    follower = threading.Thread(target=seen.follow, args=(stream,), name="metrics", daemon=True)
    follower.start()
    handle = stub.CreateWatch(_watch(container), timeout=RPC_TIMEOUT_S)
    if list(handle.pid) != [container.pid]:
        raise DemoError(f"the handle names pids {list(handle.pid)}, the container's init is {container.pid}")
    terminal.detail(f"watching /data and all below in pod {handle.podName} on {handle.nodeName}, pid {handle.pid[0]}")
    terminal.detail(f"events: {', '.join(EVENTS)}")

    terminal.heading("Work with files inside the container")
    for script, expected in WORK:
        _work(terminal, container, seen, script, expected)

    terminal.heading("What was seen")
    _check(terminal, seen)

    terminal.heading("DestroyWatch, and stop")
    stub.DestroyWatch(argus_pb2.ArgusdConfig(nodeName=NODE, podName=POD, pid=handle.pid), timeout=RPC_TIMEOUT_S)
    if list(stub.GetWatchState(argus_pb2.Empty(), timeout=RPC_TIMEOUT_S)):
        raise DemoError("GetWatchState still names a watch after DestroyWatch")
    stream.cancel()
    follower.join()
    daemon.stop()
    terminal.good("watch destroyed, daemon ended with exit code 0")
    container.close()
    terminal.good("container removed")


def _watch(container: Container) -> argus_pb2.ArgusdConfig:
    subject = argus_pb2.ArgusWatcherSubject(
        path=["/data"], event=EVENTS, recursive=True, tags={"app": "web", "tier": "front"}
    )
    return argus_pb2.ArgusdConfig(
        name=WATCHER, nodeName=NODE, podName=POD, cid=[container.uri_as("containerd")], subject=[subject]
    )


def _work(terminal: Terminal, container: Container, seen: Seen, script: str, expected: tuple[str, ...]) -> None:
    start = len(seen.lines)
    terminal.command(script)
    container.exec(["sh", "-c", script])
    if not seen.wait_for(lambda: seen.has(expected, start)):
        raise DemoError(f"not all of {expected} was logged within {EVENTS_TIMEOUT_S:.0f} s")
    # The counts travel apart from the lines: let this command's come before the next one begins.
    if not seen.wait_for(lambda: seen.counted == seen.logged):
        raise DemoError(f"metrics {dict(seen.counted)} do not come up to the log {dict(seen.logged)}")


def _check(terminal: Terminal, seen: Seen) -> None:
    equal = seen.wait_for(lambda: seen.logged == seen.counted)
    terminal.table(seen.logged, seen.counted)
    for event in ("create", "modify", "delete"):
        if not seen.logged[event]:
            raise DemoError(f"no {event.upper()} line was seen")
    terminal.good("CREATE, MODIFY and DELETE lines of the container's files were seen")
    if not equal:
        raise DemoError("the metrics stream does not count what was logged")
    terminal.good("the metrics stream counts exactly what was logged")
