"""Updates of a running daemon's watches as differences: nothing is missed, told twice, touched without need or left."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import grpc
import pytest

from argusd.proto import argus_pb2
from tests import sysctls
from tests.conformance.watching import Metrics
from tests.load.watched import CALL_S, LoadedDaemon, until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a sysctl is changed, and only root may watch")

UPDATES: Final = 200
FOLDERS: Final = ("", "a", "a/b", "c")
FILES: Final = 10
DIRECTORIES: Final = 8_000

# Writes one byte to each file in turn, so that the kernel merges no event into the one before it, until its stdin ends;
# then prints how often it has been round. The pause keeps the kernel's queue from overflowing
# and what the client has to receive within bounds.
PRODUCER: Final = r"""
import os, select, sys
descriptors = [os.open(path, os.O_WRONLY) for path in sys.argv[1:]]
rounds = 0
print("ready", flush=True)
while True:
    for descriptor in descriptors:
        os.pwrite(descriptor, b"x", 0)
    rounds += 1
    if select.select([0], [], [], 0.005)[0]:
        break
print(rounds)
"""


class Producer:
    """A process that writes without a pause while this one updates watches."""

    def __init__(self, paths: list[Path]) -> None:
        command = [sys.executable, "-c", PRODUCER, *map(str, paths)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout
        assert self._process.stdout.readline() == "ready\n"

    def stop(self) -> int:
        """Let it end; returns how often each file was written."""
        rounds, _ = self._process.communicate(timeout=CALL_S)
        return int(rounds)


def variants() -> Iterator[dict[str, Any]]:
    """Subjects that all ask for MODIFY; each differs from the one before in one field, in turn."""
    subject: dict[str, Any] = {
        "event": ["modify"], "tags": {"version": "0"}, "ignore": [], "maxDepth": 0, "logFormat": "",
    }  # fmt: skip
    others: dict[str, tuple[Any, Any]] = {
        "event": (["modify", "create"], ["modify"]),
        "tags": ({"version": "1"}, {"version": "0"}),
        "ignore": (["none.of.these"], []),
        "maxDepth": (5, 0),
        "logFormat": ("{event} {path}{sep}{file} in {pod}", ""),
    }
    for number in range(UPDATES):
        field = list(others)[number % len(others)]
        subject = {**subject, field: others[field][number // len(others) % 2]}
        yield subject


def update(daemon: LoadedDaemon, folder: Path, **fields: Any) -> None:
    """Send CreateWatch for the pod's one subject."""
    log_format = fields.pop("logFormat", "")
    subject = argus_pb2.ArgusWatcherSubject(path=[str(folder)], recursive=True, **fields)
    request = argus_pb2.ArgusdConfig(
        name="w1", nodeName="node1", podName="pod1", pid=[os.getpid()], subject=[subject], logFormat=log_format
    )
    daemon.stub.CreateWatch(request, timeout=CALL_S)


def kernel_watches(pid: int) -> list[str]:
    """Number, inode and file system of each inotify watch of a process (proc(5), fdinfo).

    Masks are left out: a kernel watch that serves several subjects may go on asking for more than is left of them.
    """
    found = []
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += [
                " ".join(line.split()[1:4]) for line in path.read_text().splitlines() if line.startswith("inotify ")
            ]
    return sorted(found)


def watches_become(daemon: LoadedDaemon, expected: list[str]) -> list[str]:
    """Wait until the daemon's watches are the expected ones; returns what they are then, or when time is over."""
    with contextlib.suppress(AssertionError):
        until(lambda: kernel_watches(daemon.process.pid) == expected, "these watches", timeout_s=CALL_S)
    return kernel_watches(daemon.process.pid)


def watches_in_use() -> int:
    """How many watches there are on this machine, for the limit is one for all processes of a user."""
    count = 0
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            count += len(kernel_watches(int(process.name)))
    return count


def events(daemon: LoadedDaemon) -> list[dict[str, Any]]:
    records = (json.loads(line) for line in daemon.log.read_text().splitlines())
    return [record for record in records if "event" in record]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[LoadedDaemon]:
    with LoadedDaemon(tmp_path / "log") as daemon:
        yield daemon


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = []
    for folder in FOLDERS:
        (tmp_path / "tree" / folder).mkdir(parents=True)
        paths += [tmp_path / "tree" / folder / f"f{number}" for number in range(FILES)]
    for path in paths:
        path.touch()
    return paths


def test_writes_through_two_hundred_updates_are_each_told_once(
    daemon: LoadedDaemon, files: list[Path], tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    metrics = Metrics(daemon.stub)
    update(daemon, tree, event=["modify"])
    producer = Producer(files)
    for subject in variants():
        update(daemon, tree, **subject)
    rounds = producer.stop()
    assert rounds > UPDATES // 4
    last = tree / "end"
    update(daemon, tree, event=["create"])
    last.touch()
    until(lambda: str(last) in daemon.log.read_text(), "the file that ends the test is reported")
    told = Counter(f"{record['path']}/{record['file']}" for record in events(daemon) if record["event"] == "MODIFY")
    assert told == dict.fromkeys(map(str, files), rounds)
    total = rounds * len(files) + 1
    assert metrics.wait_while_they_come("w1", total)
    counts = metrics.take(Counter({("w1", "modify", "node1"): total - 1, ("w1", "create", "node1"): 1}))
    assert counts == {("w1", "modify", "node1"): total - 1, ("w1", "create", "node1"): 1}
    metrics.close()


def test_unchanged_config_touches_no_watch(daemon: LoadedDaemon, files: list[Path], tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    assert files
    for _ in range(2):
        update(daemon, tree, event=["modify"], tags={"a": "b"}, ignore=["no"])
    before = kernel_watches(daemon.process.pid)
    assert len(before) >= len(FOLDERS)
    for _ in range(50):
        update(daemon, tree, event=["modify"], tags={"a": "b"}, ignore=["no"])
    assert kernel_watches(daemon.process.pid) == before


def test_changed_tags_keep_the_kernel_watches(daemon: LoadedDaemon, files: list[Path], tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    update(daemon, tree, event=["modify"], tags={"a": "1"})
    before = kernel_watches(daemon.process.pid)
    update(daemon, tree, event=["modify"], tags={"a": "2"})
    assert kernel_watches(daemon.process.pid) == before
    files[-1].write_bytes(b"x")
    until(lambda: events(daemon), "the write is reported")
    assert {json.dumps(record["tags"]) for record in events(daemon)} == {'{"a": "2"}'}


def test_narrower_config_gives_its_watches_back(daemon: LoadedDaemon, files: list[Path], tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    assert files
    update(daemon, tree, event=["modify"], maxDepth=2)
    narrow = kernel_watches(daemon.process.pid)
    update(daemon, tree, event=["modify"])
    wide = kernel_watches(daemon.process.pid)
    assert len(wide) == len(narrow) + 1
    update(daemon, tree, event=["modify"], maxDepth=2)
    assert watches_become(daemon, narrow) == narrow


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A tree of many directories."""
    for number in range(DIRECTORIES):
        if number % 100 == 0:
            (tmp_path / "large" / str(number)).mkdir(parents=True)
        else:
            (tmp_path / "large" / str(number - number % 100) / str(number)).mkdir()
    return tmp_path / "large"


@pytest.mark.changes_sysctls
def test_limit_reached_in_the_middle_of_a_walk_leaves_nothing_behind(
    daemon: LoadedDaemon, files: list[Path], large: Path, tmp_path: Path
) -> None:
    update(daemon, tmp_path / "tree", event=["modify"])
    before = kernel_watches(daemon.process.pid)
    request = argus_pb2.ArgusdConfig(
        name="w2",
        nodeName="node1",
        podName="pod2",
        pid=[os.getpid()],
        subject=[
            argus_pb2.ArgusWatcherSubject(path=[str(files[0])], event=["attrib"]),
            argus_pb2.ArgusWatcherSubject(path=[str(large)], event=["create"], recursive=True),
        ],
    )
    # Half of what is needed, so that other programs on the machine do not change the outcome.
    limit = watches_in_use() + DIRECTORIES // 2
    with sysctls.inotify("max_user_watches", limit), pytest.raises(grpc.RpcError) as refused:
        daemon.stub.CreateWatch(request, timeout=CALL_S)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert f"fs.inotify.max_user_watches is {limit}" in str(refused.value.details())
    assert watches_become(daemon, before) == before
    handles = daemon.stub.GetWatchState(argus_pb2.Empty(), timeout=CALL_S)
    assert [(handle.podName, list(handle.pid)) for handle in handles] == [("pod1", [os.getpid()])]
    for path in files[:2]:
        path.write_bytes(b"x")
    until(lambda: any(record["file"] == files[1].name for record in events(daemon)), "the first watch reports")
    assert {record["event"] for record in events(daemon)} == {"MODIFY"}
    # With the limit out of the way the same request succeeds, and reports.
    daemon.stub.CreateWatch(request, timeout=CALL_S)
    (large / "100" / "101" / "x").touch()
    until(lambda: any(record["event"] == "CREATE" for record in events(daemon)), "the second watch reports")


@pytest.mark.changes_sysctls
def test_limit_reached_by_an_update_keeps_what_there_was(
    daemon: LoadedDaemon, files: list[Path], large: Path, tmp_path: Path
) -> None:
    (tmp_path / "tree" / "link").symlink_to(large)
    update(daemon, tmp_path / "tree", event=["modify"])
    before = kernel_watches(daemon.process.pid)
    limit = watches_in_use() + DIRECTORIES // 2
    with sysctls.inotify("max_user_watches", limit), pytest.raises(grpc.RpcError) as refused:
        update(daemon, tmp_path, event=["modify", "create"])
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert watches_become(daemon, before) == before
    files[0].write_bytes(b"x")
    until(lambda: events(daemon), "the watch reports as before")
    assert {(record["event"], record["path"]) for record in events(daemon)} == {("MODIFY", str(tmp_path / "tree"))}
