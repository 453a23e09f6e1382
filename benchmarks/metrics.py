"""CPU for each event while RecordMetrics clients listen, and messages that do not come.

Events come evenly, 20,000 a second, and are logged as users have it. Clients are processes of their own that count
messages at next to no cost (metrics_client.c), so what is measured is the daemon. It is allowed a share of what one
event with one client has cost the original argusd, which cannot be run here: that figure, 47 µs, is a constant.
"""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from benchmarks.daemon import TIMEOUT_S, MeasuredDaemon
from benchmarks.producer import Producer, compiled, next_line
from benchmarks.table import NO_GOAL, Comparison, Losses, Lost, Row

RATE: Final = 20_000
SECONDS: Final = 2
ROUNDS: Final = 3
CLIENTS: Final = (0, 1, 4)
ORIGINAL_US: Final = 47.0
GOAL: Final = 0.8
QUIET_S: Final = 2.0
ASK_EVERY_S: Final = 0.02


class Client:
    """One stream, in a process of its own."""

    def __init__(self, address: str) -> None:
        """``address`` is HOST:PORT."""
        self._command = [str(compiled("metrics_client")), *address.rsplit(":", 1)]
        self._process: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        """Come back when the daemon has the stream: from now on every event is a message."""
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        if next_line(self._process.stdout) != b"ready":
            raise RuntimeError("the client has no stream")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End it."""
        self._process.communicate(timeout=TIMEOUT_S)  # closes its input

    def messages(self) -> int:
        """How many have come."""
        if self._process.stdin is None:
            raise RuntimeError("the client has no input")
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        return int(next_line(self._process.stdout))


def measure() -> Sequence[Row]:
    """Measure; takes about 40 seconds: the messages to four clients take longer than their events."""
    cpu_us: dict[int, list[float]] = defaultdict(list)
    lost: dict[int, int] = defaultdict(int)
    with tempfile.TemporaryDirectory(prefix="argusd-benchmark-") as top, contextlib.ExitStack() as stack:
        producer = stack.enter_context(Producer(Path(top, "watched")))
        daemon = stack.enter_context(MeasuredDaemon(Path(top, "daemon")))
        daemon.watch(producer.folder, ["all"])
        log = stack.enter_context(daemon.log.open("rb"))
        producer.produce("pwrite", RATE // 10, 0)  # warms up what is used for the first time
        _wait_for_lines(log, RATE // 10)
        for count in CLIENTS * ROUNDS:
            took_us, missing = _run(daemon, producer, log, count)
            cpu_us[count].append(took_us)
            lost[count] += missing
    return list(_rows(cpu_us, lost))


def _run(daemon: MeasuredDaemon, producer: Producer, log: IO[bytes], count: int) -> tuple[float, int]:
    """Microseconds of CPU for each event, and messages that have not come, or have come too often."""
    events = RATE * SECONDS
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(daemon.address)) for _ in range(count)]
        before_s = daemon.cpu_s()
        producer.produce("pwrite", events, RATE)
        _wait_for_lines(log, events)  # else the next clients would hear of the last ones
        came = _all_messages(clients, events)
        return (daemon.cpu_s() - before_s) * 1e6 / events, sum(abs(events - messages) for messages in came)


def _wait_for_lines(log: IO[bytes], events: int) -> None:
    """Wait until as many more events have been logged."""
    deadline, seen, rest = time.monotonic() + TIMEOUT_S, 0, b""
    while True:
        whole, newline, rest = (rest + log.read()).rpartition(b"\n")
        seen += (whole + newline).count(b'"event":"MODIFY"')
        if seen >= events:
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"{seen} of {events} events were logged")
        time.sleep(ASK_EVERY_S)


def _all_messages(clients: Sequence[Client], events: int) -> list[int]:
    """What each client has at last: all, or as many as there are when no more come."""
    came, since_s = [0] * len(clients), time.monotonic()
    while any(messages < events for messages in came) and time.monotonic() < since_s + QUIET_S:
        time.sleep(ASK_EVERY_S)
        now = [client.messages() for client in clients]
        if now != came:
            came, since_s = now, time.monotonic()
    return came


def _rows(cpu_us: dict[int, list[float]], lost: dict[int, int]) -> Iterator[Row]:
    events = RATE * SECONDS
    for count in CLIENTS:
        yield Comparison(
            what=f"{RATE:,}/s, {_clients(count)}: CPU",
            unit="µs",
            measured="argusd",
            reference="original with 1 client, a constant",
            values=cpu_us[count],
            reference_values=[ORIGINAL_US],
            goal=GOAL if count == 1 else NO_GOAL,
        )
    for count in CLIENTS:
        if count:
            yield Losses(
                what=f"{RATE:,}/s, {_clients(count)}: messages missing",
                measured="argusd",
                lost=Lost(lost[count], events * count * ROUNDS),
                has_goal=True,
            )


def _clients(count: int) -> str:
    return "1 client" if count == 1 else f"{count} clients"
