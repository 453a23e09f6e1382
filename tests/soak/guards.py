"""Watches and guards on one container under load: ``make soak-guards DURATION_S=300``.

For half of the time one process serves both, then two processes do. 16 processes in the container write, make and
delete files that are watched and guarded, and try one that is denied. They count what they have done; every bit of it
has to be logged once, and none of them may wait for long. All the while both the watch and the guards change.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import mmap
import os
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import grpc

from argusd.proto import argus_pb2, argus_pb2_grpc, janus_pb2, janus_pb2_grpc
from demo.container import Container
from tests.containers import RuncContainer
from tests.waiting import until

WORKERS: Final = 16
FILES: Final = 10
PAUSE_US: Final = 20_000
STUCK_S: Final = 5.0
CATCH_UP_S: Final = 60.0
CALL_S: Final = 30.0
TELL_S: Final = 10.0
ROOT: Final = Path(__file__).parent.parent.parent
LISTENING: Final = b"Server listening on "

_HEAD: Final = struct.Struct("=Q")
_SLOT: Final = struct.Struct("=6Q")

WORKER_C: Final = r"""
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct slot { uint64_t writes, creates, refusals, wrong, longest_ns, begun_ns; };
struct control { uint64_t stop; struct slot slots[]; };

static struct slot *own;

static int timed_open(const char *path, int flags)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    uint64_t begun = now.tv_sec * 1000000000ULL + now.tv_nsec, took;
    __atomic_store_n(&own->begun_ns, begun, __ATOMIC_RELEASE);
    int fd = open(path, flags | O_CLOEXEC, 0644);
    __atomic_store_n(&own->begun_ns, 0, __ATOMIC_RELEASE);
    clock_gettime(CLOCK_MONOTONIC, &now);
    took = now.tv_sec * 1000000000ULL + now.tv_nsec - begun;
    if (took > own->longest_ns) own->longest_ns = took;
    return fd;
}

static void work(struct control *control, int number, int files, int pause_us)
{
    char path[64];
    own = &control->slots[number];
    while (!__atomic_load_n(&control->stop, __ATOMIC_ACQUIRE)) {
        for (int i = 0; i < files; i++) {
            snprintf(path, sizeof(path), "/data/opened/%d.%d", number, i);
            int fd = timed_open(path, O_WRONLY);
            if (fd < 0 || write(fd, "x", 1) != 1 || close(fd) != 0) own->wrong++;
            else own->writes++;
        }
        snprintf(path, sizeof(path), "/data/opened/%d.new", number);
        int fd = timed_open(path, O_WRONLY | O_CREAT | O_EXCL);
        if (fd < 0 || close(fd) != 0 || unlink(path) != 0) own->wrong++;
        else own->creates++;
        snprintf(path, sizeof(path), "/data/closed/%d", number);
        fd = timed_open(path, O_RDONLY);
        if (fd >= 0 || errno != EPERM) own->wrong++;
        else own->refusals++;
        usleep(pause_us);
    }
}

int main(int argc, char **argv)
{
    int workers = atoi(argv[1]), fd = open("/control", O_RDWR);
    struct control *control = mmap(NULL, sizeof(*control) + workers * sizeof(struct slot), PROT_READ | PROT_WRITE,
                                   MAP_SHARED, fd, 0);
    if (argc != 4 || control == MAP_FAILED) return 1;
    for (int i = 0; i < workers; i++)
        if (fork() == 0) {
            work(control, i, atoi(argv[2]), atoi(argv[3]));
            _exit(0);
        }
    while (wait(NULL) > 0) {}
    return 0;
}
"""


class SoakError(Exception):
    """Something is stuck, lost or wrong; ``str()`` says what."""


@dataclass(slots=True)
class Sums:
    """What the workers have done, or what was logged of it."""

    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    longest_s: float = 0.0
    wrong: int = 0


class Workload:
    """The processes in the container."""

    def __init__(self, container: Container) -> None:
        """Make the files; nothing runs yet."""
        self._container = container
        for name in ("opened", "closed", "other"):
            (container.rootfs / "data" / name).mkdir(parents=True)
        for number in range(WORKERS):
            (container.rootfs / "data/closed" / str(number)).touch()
            for i in range(FILES):
                (container.rootfs / "data/opened" / f"{number}.{i}").touch()
        control = container.rootfs / "control"
        control.write_bytes(bytes(_HEAD.size + WORKERS * _SLOT.size))
        with control.open("r+b") as file:
            self._control = mmap.mmap(file.fileno(), 0)
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "worker.c")
            source.write_text(WORKER_C)
            subprocess.run(["cc", "-O2", "-static", "-o", container.rootfs / "worker", source], check=True)

    def __enter__(self) -> Self:
        """Start the processes."""
        numbers = [str(number) for number in (WORKERS, FILES, PAUSE_US)]
        self._thread = threading.Thread(target=self._container.try_exec, args=(["/worker", *numbers],))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let them end by themselves: who is stuck cannot."""
        _HEAD.pack_into(self._control, 0, 1)
        self._thread.join(CALL_S)
        if self._thread.is_alive() and kind is None:
            raise SoakError("processes in the container do not end")

    def sums(self) -> Sums:
        """What they have done by now; SoakError when one of them waits for too long, or was answered wrongly."""
        sums = Sums()
        for number in range(WORKERS):
            slot = _SLOT.unpack_from(self._control, _HEAD.size + number * _SLOT.size)
            writes, creates, refusals, wrong, longest_ns, begun_ns = slot
            if wrong:
                raise SoakError(f"worker {number} was answered wrongly {wrong} times")
            if begun_ns and time.monotonic_ns() - begun_ns > STUCK_S * 1e9:
                raise SoakError(f"worker {number} has waited for more than {STUCK_S:.0f} s")
            sums.longest_s = max(sums.longest_s, longest_ns / 1e9)
            sums.counts["MODIFY"] += writes
            sums.counts["CLOSE_WRITE"] += writes + creates
            sums.counts["CREATE"] += creates
            sums.counts["DELETE"] += creates
            sums.counts["ALLOW"] += writes + creates
            sums.counts["DENY"] += refusals
        return sums


class Server:
    """A daemon process whose lines are counted."""

    def __init__(self, services: str) -> None:
        """Start it."""
        self.counts: collections.Counter[str] = collections.Counter()
        self.said: list[str] = []
        self._listens = threading.Event()
        command = [sys.executable, "-m", "argusd", "-address=127.0.0.1:0", "-log_dir=", "-log=json"]
        command.append(f"-services={services}")
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._listens.wait(CALL_S):
            raise SoakError(f"the daemon does not start: {self.said}")
        self.channel = grpc.insecure_channel(self.address, [("grpc.use_local_subchannel_pool", 1)])

    def _read(self) -> None:
        assert self.process.stderr
        rest = b""
        with self.process.stderr as log:
            while data := os.read(log.fileno(), 1 << 20):
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self._count(line)

    def _count(self, line: bytes) -> None:
        if b'"event":"' not in line:
            self._hear(line)
        elif b'"ftype":"file"' in line:
            key = b'"response":"' if b'"response":"' in line else b'"event":"'
            self.counts[line.split(key, 1)[1].split(b'"', 1)[0].decode()] += 1

    def _hear(self, line: bytes) -> None:
        if LISTENING in line:
            self.address = line.split(LISTENING)[1].split(b'"')[0].split()[0].decode()
            self._listens.set()
        if b'"INFO"' not in line:
            self.said.append(line.decode())

    def stop(self) -> None:
        """End it in order; SoakError when it does not."""
        self.channel.close()
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(CALL_S)
        except subprocess.TimeoutExpired as error:
            raise SoakError("a daemon does not end") from error
        self._reader.join(CALL_S)
        if code:
            raise SoakError(f"a daemon has ended with {code}: {self.said}")

    def kill(self) -> None:
        """End it at once, if it still runs."""
        self.channel.close()
        self.process.kill()
        self.process.wait()
        self._reader.join()


class Subjects:
    """What is watched and guarded, and how that changes."""

    def __init__(self, container: Container, watching: Server, guarding: Server) -> None:
        """Watch and guard."""
        self._pid = container.pid
        self._watches = argus_pb2_grpc.ArgusdStub(watching.channel)
        self._guards = janus_pb2_grpc.JanusdStub(guarding.channel)
        self.change(0)

    def change(self, number: int) -> None:
        """Change everything that is of no consequence; another guard comes or goes."""
        who: dict[str, Any] = {"nodeName": "n", "podName": "pod", "pid": [self._pid]}
        more = ["/data/other"] if number % 2 else []
        watch = argus_pb2.ArgusWatcherSubject(
            path=["/data/opened", *more],
            event=["modify", "closewrite", "create", "delete"],
            recursive=True,
            tags={"number": str(number)},
        )
        self._watches.CreateWatch(argus_pb2.ArgusdConfig(name="w", subject=[watch], **who), timeout=CALL_S)
        guard = janus_pb2.JanusGuardSubject(
            deny=["/data/closed", *more], allow=["/data/opened"], event=["open"], tags={"number": str(number)}
        )
        self._guards.CreateGuard(janus_pb2.JanusdConfig(name="g", subject=[guard], **who), timeout=CALL_S)
        other = janus_pb2.JanusdConfig(
            name="g", nodeName="n", podName="other", pid=[self._pid],
            subject=[janus_pb2.JanusGuardSubject(deny=["/data/other/file", "/data/closed/0"], event=["access"])],
        )  # fmt: skip
        (self._guards.CreateGuard if number % 2 else self._guards.DestroyGuard)(other, timeout=CALL_S)


@contextlib.contextmanager
def servers(services: Sequence[str]) -> Iterator[list[Server]]:
    """Start daemons, and end them whatever happens."""
    with contextlib.ExitStack() as stack:
        found: list[Server] = []
        for names in services:
            found.append(Server(names))
            stack.callback(found[-1].kill)
        yield found


def run(duration_s: float, services: Sequence[str]) -> Sums:
    """Soak with these daemons, a list of services each; returns what was done, all of it logged. Raises SoakError."""
    began_s = told_s = time.monotonic()
    with RuncContainer() as container, servers(services) as daemons:
        load = Workload(container)
        subjects = Subjects(container, daemons[0], daemons[-1])
        with load:
            for number in range(1, 1 << 30):
                threading.Event().wait(0.25)
                subjects.change(number)
                sums, now_s = load.sums(), time.monotonic()
                if now_s - told_s > TELL_S:
                    told_s = now_s
                    print(line(services, now_s - began_s, sums), flush=True)
                if now_s - began_s >= duration_s:
                    break
        sums = load.sums()

        def logged() -> collections.Counter[str]:
            return sum((daemon.counts for daemon in daemons), collections.Counter())

        with contextlib.suppress(AssertionError):
            until(lambda: logged() == sums.counts, "all is logged", CATCH_UP_S)
        for daemon in daemons:
            daemon.stop()
        if logged() != sums.counts:
            raise SoakError(f"done {dict(sums.counts)}, but logged {dict(logged())}")
        if said := [text for daemon in daemons for text in daemon.said]:
            raise SoakError(f"the daemons complain: {said}")
    return sums


def line(services: Sequence[str], seconds: float, sums: Sums) -> str:
    """How it goes."""
    counts = " ".join(f"{count} {name}" for name, count in sums.counts.items())
    return f"{seconds:6.0f} s  {' + '.join(services)}  {counts}  longest open {sums.longest_s * 1e3:.0f} ms"


def main() -> int:
    """Run the soak; the exit code is 1 when something was stuck, lost or wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--duration-s", type=float, default=300.0)
    options = parser.parse_args()
    for services in (["argus,janus"], ["argus", "janus"]):
        began_s = time.monotonic()
        try:
            sums = run(options.duration_s / 2, services)
        except SoakError as error:
            print(f"FAILED with {' + '.join(services)}: {error}")
            return 1
        print(f"{line(services, time.monotonic() - began_s, sums)}: nothing is stuck, nothing lost", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
