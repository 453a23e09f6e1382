"""Fuzzes all rpcs of a real daemon, in a pid namespace of its own.

    python -m tests.fuzz.rpcs --duration-s 60 --requests 1000000 --seed 1

The daemon must not end, never say INTERNAL or UNKNOWN, serve all the time, log no traceback, and have as many
descriptors, threads and watches in the end as after the first round.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.daemon import Daemon, until
from tests.fuzz.requests import STREAMS, Call, Requests
from tests.kernel.container import Container

INSIDE: Final = "ARGUSD_FUZZ_INSIDE"
NAMESPACES: Final = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
PODS: Final = 3
CALLERS: Final = 64
CALL_S: Final = 30.0
ROUND: Final = 5_000
"""Requests between two looks at the daemon."""
GROWTH_KIB: Final = 20 * 1024
"""What resident memory may grow by from the end of the first round on: caches of gRPC and of the allocator."""
THREADS: Final = 64
"""Executors have less than this many; beyond it they leak."""
FAULTS: Final = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED})
NOT_UTF8: Final = "Exception deserializing request"
"""gRPC itself answers bytes that are no message with INTERNAL; the daemon has not been called."""


class Violation(Exception):  # noqa: N818  (the soak's word as well)
    """The daemon did what it must not."""


@contextlib.contextmanager
def pods(folder: Path) -> Iterator[list[int]]:
    """Processes with roots of their own, in which there is a bit of everything."""
    containers = []
    for number in range(PODS):
        data = folder / str(number) / "data"
        (data / "a" / "b").mkdir(parents=True)
        (data / "file").write_text("1")
        (data / "link").symlink_to("/data/a")
        (data / "loop").symlink_to("loop")
        os.mkfifo(data / "fifo")
        containers.append(Container(folder / str(number)))
    try:
        yield [container.pid for container in containers]
    finally:
        for container in containers:
            container.close()


def as_bytes(payload: bytes) -> bytes:
    """No message class stands between the fuzzer and the daemon."""
    return payload


async def send(channel: grpc.aio.Channel, call: Call) -> grpc.StatusCode:
    """One request; of a stream the first message is enough."""
    try:
        if call.method in STREAMS:
            stream = channel.unary_stream(call.method, as_bytes, as_bytes)(call.payload, timeout=CALL_S)
            if call.method.endswith("State"):
                async for _ in stream:
                    pass
            else:
                await stream.initial_metadata()
                stream.cancel()
        else:
            await channel.unary_unary(call.method, as_bytes, as_bytes)(call.payload, timeout=CALL_S)
    except grpc.aio.AioRpcError as error:
        if error.code() in FAULTS and NOT_UTF8 not in (error.details() or ""):
            raise Violation(f"{error.code().name}: {error.details()}\n{call.method} {call.payload.hex()}") from None
        return error.code()
    return grpc.StatusCode.OK


async def play(address: str, requests: Requests, count: int, made: list[Call]) -> Counter[str]:
    """Send so many requests, some at once, and keep those that made something; returns how often each code came."""
    codes: Counter[str] = Counter()
    left = iter(range(count))

    async def caller(channel: grpc.aio.Channel) -> None:
        for _ in left:
            call = requests.next()
            code = await send(channel, call)
            codes[code.name] += 1
            if code is grpc.StatusCode.OK and "/Create" in call.method:
                made.append(call)

    async with grpc.aio.insecure_channel(address) as channel, asyncio.TaskGroup() as group:
        for _ in range(CALLERS):
            group.create_task(caller(channel))
    return codes


def send_bytes(address: str, chance: random.Random) -> None:
    """What is no gRPC at all, on a connection of its own."""
    host, _, port = address.rpartition(":")
    preface = chance.choice([b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01"])
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), CALL_S) as connection:
        connection.sendall(preface + chance.randbytes(chance.choice([0, 9, 100, 5000])))
        if chance.random() < 0.5:
            connection.shutdown(socket.SHUT_WR)


class Watched:
    """What a process holds."""

    def __init__(self, pid: int) -> None:
        self._process = Path("/proc", str(pid))

    def memory_kib(self) -> int:
        """Resident."""
        status = (self._process / "status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0])

    def descriptors(self) -> list[str]:
        """What is open, for a report."""
        found = []
        for path in (self._process / "fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found.append(f"{path.name} {path.readlink()}")
        return sorted(found)

    def held(self) -> tuple[int, int, int]:
        """Descriptors but for sockets, and inotify watches; threads, of which executors start more one by one."""
        descriptors = watches = 0
        for path in (self._process / "fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                descriptors += not str(path.readlink()).startswith("socket:")
                watches += (self._process / "fdinfo" / path.name).read_text().count("inotify wd:")
        return descriptors, watches, len(list((self._process / "task").iterdir())) // THREADS


def let_go(daemon: Daemon, made: list[Call]) -> None:
    """End all watches and guards by name: GetWatchState leaves out a pod of which a container is missing."""
    for call in made:
        daemon.channel.unary_unary(call.method.replace("Create", "Destroy"), as_bytes, as_bytes)(
            call.payload, timeout=CALL_S
        )
    made.clear()


def check(daemon: Daemon) -> None:
    """It runs, serves, and has met nothing that it did not expect."""
    if daemon.process.poll() is not None:
        raise Violation(f"the daemon ended with {daemon.process.returncode}:\n" + "\n".join(daemon.lines[-40:]))
    stub: Any = health_pb2_grpc.HealthStub(daemon.channel)
    if stub.Check(health_pb2.HealthCheckRequest(), timeout=CALL_S).status != health_pb2.HealthCheckResponse.SERVING:
        raise Violation("health is not SERVING")
    for line in daemon.lines:
        if "Traceback" in line:
            raise Violation(f"a traceback: {line}")


def fuzz(duration_s: float, count: float, seed: int, folder: Path) -> str:
    """Fuzz until the time or the requests are over; returns the sums. Raises Violation."""
    begin = time.monotonic()
    codes: Counter[str] = Counter()
    chance = random.Random(seed)
    with pods(folder) as pids, Daemon("-services=argus,janus", "-log=json") as daemon:
        requests, watched = Requests(chance, pids), Watched(daemon.pid)
        made: list[Call] = []
        before, memory_kib = (0, 0, 0), 0
        while time.monotonic() - begin < duration_s and codes.total() < count:
            codes += asyncio.run(play(daemon.address, requests, ROUND, made))
            for _ in range(20):
                send_bytes(daemon.address, chance)
            check(daemon)
            let_go(daemon, made)
            if not memory_kib:  # threads and caches are there after a while, and then no more of them
                before, memory_kib = watched.held(), watched.memory_kib()
        with contextlib.suppress(AssertionError):
            until(lambda: all(map(int.__le__, watched.held(), before)), "no more is held", timeout_s=CALL_S)
        if not all(map(int.__le__, held := watched.held(), before)):
            left = [*daemon.state(), *daemon.guard_state()]
            open_now = f"{watched.descriptors()}\nstate: {left}"
            raise Violation(f"descriptors, watches and threads: {before} before, {held} now\n{open_now}")
        grown_kib = watched.memory_kib() - memory_kib
        if grown_kib > GROWTH_KIB:
            raise Violation(f"memory has grown by {grown_kib} KiB")
    seconds = time.monotonic() - begin
    return f"{codes.total()} requests in {seconds:.0f} s, memory {grown_kib:+} KiB: {dict(codes.most_common())}"


def main() -> int:
    """Read the command line, enter namespaces, and fuzz."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--duration-s", type=float, default=60)
    parser.add_argument("--requests", type=float, default=math.inf, help="about how many are enough")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    asked = parser.parse_args()
    if INSIDE not in os.environ:
        again = [sys.executable, "-m", "tests.fuzz.rpcs", *sys.argv[1:]]
        return subprocess.run([*NAMESPACES, *again], env={**os.environ, INSIDE: "1"}, check=False).returncode
    print(f"seed {asked.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        print(fuzz(asked.duration_s, asked.requests, asked.seed, Path(folder)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
