"""A daemon whose log goes to a file or through a pipe, and a producer of events that runs at full speed."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import grpc

from argusd.proto import argus_pb2, argus_pb2_grpc
from tests import waiting

ROOT: Final = Path(__file__).parent.parent.parent
WAIT_S: Final = 60.0
CALL_S: Final = 10.0

until = functools.partial(waiting.until, timeout_s=WAIT_S)
LISTENING: Final = b"Server listening on "

# Writes and closes files in turn, so that the kernel merges no event into the one before it: MODIFY, CLOSE_WRITE, …
PRODUCER_C: Final = r"""
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv) {
    int files = atoi(argv[2]), rounds = atoi(argv[3]);
    char name[32];
    if (argc != 4 || chdir(argv[1]) != 0) return 1;
    for (int round = 0; round < rounds; round++)
        for (int number = 0; number < files; number++) {
            snprintf(name, sizeof(name), "%d", number);
            int fd = open(name, O_WRONLY);
            if (fd < 0 || write(fd, "x", 1) != 1 || close(fd) != 0) return 2;
        }
    return 0;
}
"""


def build_producer(folder: Path) -> Path:
    """Compile the producer."""
    (folder / "producer.c").write_text(PRODUCER_C)
    subprocess.run(["cc", "-O2", "-o", folder / "producer", folder / "producer.c"], check=True)
    return folder / "producer"


def make_files(folder: Path, count: int) -> None:
    """Make the files that the producer writes."""
    folder.mkdir()
    for number in range(count):
        (folder / str(number)).touch()


def run_producer(producer: Path, folder: Path, files: int, rounds: int) -> None:
    """Make ``2 * files * rounds`` events."""
    subprocess.run([producer, folder, str(files), str(rounds)], check=True, timeout=WAIT_S)


class Growing:
    """A file that somebody writes: counts lines that hold ``wanted``, reading every byte once."""

    def __init__(self, path: Path, wanted: Sequence[bytes]) -> None:
        self._file = path.open("rb")
        self._rest = b""
        self._wanted = tuple(wanted)
        self.counts = dict.fromkeys(wanted, 0)
        self.others: list[bytes] = []

    def read(self) -> int:
        """Read on; returns how many wanted lines there are by now."""
        while data := self._file.read(1 << 22):
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                found = next((text for text in self._wanted if text in line), None)
                if found is None:
                    self.others.append(line)
                else:
                    self.counts[found] += 1
        return sum(self.counts.values())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class LoadedDaemon:
    """One argusd with JSON lines in a file: written by itself, or by ``cat`` behind a pipe."""

    def __init__(self, log: Path, *, through_pipe: bool = False) -> None:
        self.log = log
        self._through_pipe = through_pipe
        self._shipper: subprocess.Popen[bytes] | None = None
        self.process: subprocess.Popen[bytes]
        self.channel: grpc.Channel
        self.address = ""

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "argusd", "-address", "127.0.0.1:0", "-log_dir=", "-log=json"]
        with self.log.open("wb") as log:
            if self._through_pipe:
                self._shipper = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=log)
                assert self._shipper.stdin
                self.process = subprocess.Popen(command, cwd=ROOT, stderr=self._shipper.stdin)
                self._shipper.stdin.close()
            else:
                self.process = subprocess.Popen(command, cwd=ROOT, stderr=log)
        try:
            until(lambda: self.process.poll() is not None or LISTENING in self.log.read_bytes(), "the daemon listens")
            self.address = self.log.read_bytes().split(LISTENING)[1].split(b'"')[0].split()[0].decode()
        except BaseException:
            self._end()
            raise
        self.channel = self.new_channel()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.channel.close()
        self._end()

    def _end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(CALL_S)
            assert code == 0, f"exit code {code}"
        finally:
            self.process.kill()
            self.process.wait()
            if self._shipper is not None:
                self._shipper.wait(CALL_S)

    def new_channel(self) -> grpc.Channel:
        """A connection of its own, for the caller to close."""
        return grpc.insecure_channel(self.address, [("grpc.use_local_subchannel_pool", 1)])

    @property
    def stub(self) -> argus_pb2_grpc.ArgusdStub:
        """The service."""
        return argus_pb2_grpc.ArgusdStub(self.channel)

    def watch(self, folder: Path, events: Sequence[str], **fields: Any) -> None:
        """Watch a folder as this process sees it."""
        self.stub.CreateWatch(config(folder, events, **fields), timeout=CALL_S)

    def descriptors(self) -> list[str]:
        """What the daemon has open, by what it is."""
        found = []
        for name in Path(f"/proc/{self.process.pid}/fd").iterdir():
            try:
                found.append(str(name.readlink()))
            except FileNotFoundError:
                continue
        return sorted(found)

    def threads(self) -> list[str]:
        """The names of the daemon's threads."""
        return sorted(task.read_text().strip() for task in Path(f"/proc/{self.process.pid}/task").glob("*/comm"))

    def resident_kib(self) -> int:
        """The memory that the daemon holds."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGESIZE") // 1024


def config(folder: Path, events: Sequence[str], **fields: Any) -> argus_pb2.ArgusdConfig:
    """A request that watches ``folder`` in this very process."""
    subject = argus_pb2.ArgusWatcherSubject(path=[str(folder)], event=events, recursive=True)
    values: dict[str, Any] = {"name": "w1", "nodeName": "node1", "podName": "pod1", "pid": [os.getpid()], **fields}
    return argus_pb2.ArgusdConfig(subject=[subject], **values)
