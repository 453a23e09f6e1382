"""One pod that floods the log, and the lines of its neighbour."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from argusd.proto import argus_pb2, argus_pb2_grpc
from tests.daemon import COMMAND, ROOT, WAIT_S

RING_BYTES = 32 << 20
RUNTIME_CUTS_AT = 16 * 1024
DEEP = 15


class Deaf:
    """A daemon whose stderr nobody reads until it is asked to end."""

    def __init__(self, folder: Path, style: str) -> None:
        address = f"unix:{folder}/socket"
        command = [*COMMAND, f"-address={address}", "-log_dir=", f"-log={style}"]
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)
        self.channel = grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])
        grpc.channel_ready_future(self.channel).result(WAIT_S)

    def watch(self, pid: int, pod: str, path: Path, log_format: str = "") -> None:
        """Watch a directory."""
        subject = argus_pb2.ArgusWatcherSubject(path=[str(path)], event=["attrib"])
        config = argus_pb2.ArgusdConfig(
            name="w", nodeName="node1", podName=pod, pid=[pid], subject=[subject], logFormat=log_format
        )
        argus_pb2_grpc.ArgusdStub(self.channel).CreateWatch(config, timeout=WAIT_S)

    def lines(self) -> list[bytes]:
        """End it, and return every line that it wrote."""
        self.channel.close()
        assert self.process.stderr
        self.process.terminate()
        with self.process.stderr as stderr:
            lines = list(stderr)
        assert self.process.wait(WAIT_S) == 0
        return lines

    def kill(self) -> None:
        """Leave nothing behind."""
        self.process.kill()
        self.process.wait()


@pytest.fixture(params=["json", "text"])
def deaf(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Deaf]:
    deaf = Deaf(tmp_path, request.param)
    yield deaf
    deaf.kill()


def deep_folder(folder: Path) -> Path:
    """A folder whose path is nearly as long as a path may be."""
    for _ in range(DEEP):
        folder = folder / ("x" * 240)
        folder.mkdir()
    return folder


def flood(folder: Path, events: int) -> None:
    """Change the modes of two files in turn, for the kernel merges an event with one that is the same."""
    files = [folder / name for name in "ab"]
    for file in files:
        file.touch()
    for number in range(events):
        files[number % 2].chmod(0o600)


def test_long_lines_of_one_pod_leave_room_for_those_of_another(
    deaf: Deaf, pod: Callable[[], int], tmp_path: Path
) -> None:
    quiet = tmp_path / "quiet"
    quiet.mkdir()
    deep = deep_folder(tmp_path)
    deaf.watch(pod(), "flood", deep)
    deaf.watch(pod(), "quiet", quiet)
    flood(deep, 2 * RING_BYTES // len(os.fsencode(deep)))
    flood(quiet, 50)
    lines = deaf.lines()
    assert sum(b"'%s/" % os.fsencode(quiet) in line for line in lines) == 50
    told = [line for line in lines if b"log lines were dropped here" in line]
    assert told
    assert all(b" of (flood:node1)" in line and b"(quiet:" not in line for line in told)


def test_no_text_line_is_so_long_that_a_runtime_cuts_it(tmp_path: Path, pod: Callable[[], int]) -> None:
    folder = tmp_path
    for _ in range(DEEP):
        folder = folder / ("\x01" * 240)
        folder.mkdir()
    deaf = {}
    for style in ("text", "json"):
        (tmp_path / style).mkdir()
        deaf[style] = Deaf(tmp_path / style, style)
    pid = pod()
    for daemon in deaf.values():
        daemon.watch(pid, "pod1", folder, "{event} {path}{path}")
    flood(folder, 2)
    lines = {style: [line for line in daemon.lines() if b"ATTRIB" in line] for style, daemon in deaf.items()}
    assert len(lines["text"]) == len(lines["json"]) == 2
    assert all(len(line) < RUNTIME_CUTS_AT and line.endswith(b" more bytes cut]\n") for line in lines["text"])
    record: dict[str, Any] = json.loads(lines["json"][0])
    assert record["path"].count("\\x01") == DEEP * 240
