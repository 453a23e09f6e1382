"""docs/runtimes.md, row by row: the container is found, although other processes run in it, and is watched."""

from __future__ import annotations

import contextlib
import itertools
import json
import secrets
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

import pytest

from argusd.proto import argus_pb2
from tests.daemon import COMMAND, ROOT
from tests.e2e.place import Place, PlacedDaemon, missing_for, missing_for_chosen_pids, until
from tests.e2e.rows import ROWS, Row, table
from tests.e2e.runtime import Runtime, Shape
from tests.e2e.runtimes import RUNTIMES

RPC_TIMEOUT_S: Final = 5.0
# Beyond what the daemons of the runtimes have used up by then, below the least pid_max of a machine.
INIT_PIDS_FROM: Final = 20_000
LOW_PIDS_FROM: Final = 10_000
FIND: Final = """
import sys
from argusd import containers
for line in sys.stdin:
    found = containers.find([line.strip()])
    print({short: (container.id, container.pid) for short, container in found.items()}, flush=True)
    for container in found.values():
        container.close()
"""
# The cgroup namespace of a container whose cgroup is not the root: paths are then told from there.
PRIVATE_CGROUPS: Final = """
for procs in /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/systemd/cgroup.procs /sys/fs/cgroup/unified/cgroup.procs; do
    [ -e "$procs" ] || continue
    mkdir -p "${procs%/*}$0" && echo $$ >"${procs%/*}$0/cgroup.procs" || exit
done
exec unshare --cgroup "$@"
"""
_marks = itertools.count(100_000)


class Node:
    """A place with the runtimes that have been asked for, a daemon, and a process that asks the resolver."""

    def __init__(self, folder: Path, layout: str) -> None:
        self.place = Place(folder, layout)
        self._runtimes: dict[str, Runtime] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.place)
            command = ["sh", "-c", PRIVATE_CGROUPS, f"{self.place.cgroup}/kubepods/burstable/daemon", *COMMAND]
            self.daemon = stack.enter_context(PlacedDaemon(self.place, "-log=json", command=command))
            self._finder = subprocess.Popen(
                self.place.enter("env", f"PYTHONPATH={ROOT}", sys.executable, "-c", FIND),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.callback(self._finder.communicate)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def runtime(self, name: str) -> Runtime:
        """The runtime, started when it is asked for the first time."""
        if name not in self._runtimes:
            self._runtimes[name] = self._stack.enter_context(RUNTIMES[name](self.place))
        return self._runtimes[name]

    def find(self, written: str) -> str:
        """What the resolver says in the host's cgroup namespace, as text."""
        assert self._finder.stdin
        assert self._finder.stdout
        print(written, file=self._finder.stdin, flush=True)
        return self._finder.stdout.readline().strip()

    def pid_of(self, *argv: str) -> int:
        """The process with this command line, 0 when there is none."""
        wanted = "\0".join(argv).encode() + b"\0"
        for pid in self.place.pids():
            with contextlib.suppress(OSError):  # ended meanwhile
                if (self.place.proc / str(pid) / "cmdline").read_bytes() == wanted:
                    return pid
        return 0

    def cgroups(self, pid: int) -> set[str]:
        """The paths of a process in all hierarchies."""
        lines = (self.place.proc / str(pid) / "cgroup").read_text().splitlines()
        return {line.split(":", 2)[2] for line in lines}


class Nodes:
    """One node at a time, for as long as its layout is asked for."""

    def __init__(self, folders: pytest.TempPathFactory) -> None:
        self._folders = folders
        self._stack = contextlib.ExitStack()
        self._node: Node | None = None

    def of(self, layout: str) -> Node:
        """The node with this layout."""
        if self._node is None or self._node.place.layout != layout:
            self.close()
            self._node = self._stack.enter_context(Node(self._folders.mktemp("node"), layout))
        return self._node

    def close(self) -> None:
        """End the node that there is."""
        self._stack.close()


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    nodes = Nodes(tmp_path_factory)
    yield nodes
    nodes.close()


@contextlib.contextmanager
def container_of(row: Row, node: Node) -> Iterator[tuple[Runtime, str]]:
    """The row's container, where the row says that it is, with the process beside it."""
    runtime = node.runtime(row.runtime)
    uid = str(uuid.uuid4())
    uid = uid.replace("-", "_") if ".slice" in row.cgroup else uid
    shape = Shape(row.cgroup.replace("{uid}", uid), row.pids, secrets.token_hex(32))
    with contextlib.ExitStack() as stack:
        if row.beside:
            beside = row.beside.format(uid=uid, id=shape.id)
            stack.enter_context(node.place.process_in(node.place.cgroup + beside))
        node.place.next_pids(INIT_PIDS_FROM)
        container = runtime.run(shape)
        stack.callback(runtime.remove, container)
        paths = node.cgroups(runtime.pid(container))
        assert any(path.endswith(shape.cgroup.format(id=container)) for path in paths), paths
        yield runtime, container


def start_exec(node: Node, runtime: Runtime, container: str) -> int:
    """Have a process brought into the container; returns its pid."""
    argv = ("/bin/sleep", str(next(_marks)))
    runtime.exec_detached(container, *argv)
    until(lambda: node.pid_of(*argv) > 0, RPC_TIMEOUT_S, "a process brought into the container")
    pid = node.pid_of(*argv)
    assert any(container in path for path in node.cgroups(pid))
    return pid


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_container_is_found_and_watched(nodes: Nodes, row: Row) -> None:
    if reason := RUNTIMES[row.runtime].missing() or missing_for(row.layout) or missing_for_chosen_pids():
        pytest.skip(reason)
    node = nodes.of(row.layout)
    with container_of(row, node) as (runtime, container):
        init = runtime.pid(container)
        assert start_exec(node, runtime, container) > init
        node.place.next_pids(LOW_PIDS_FROM)
        assert start_exec(node, runtime, container) < init

        assert node.find(container) == str({container: (container, init)})
        subject = argus_pb2.ArgusWatcherSubject(path=["/data"], event=["create"])
        config = argus_pb2.ArgusdConfig(
            name="w", nodeName="n", podName=row.name, cid=[runtime.uri(container)], subject=[subject]
        )
        assert list(node.daemon.stub.CreateWatch(config, timeout=RPC_TIMEOUT_S).pid) == [init]
        runtime.exec(container, "touch", "/data/made-inside")
        line = json.loads(node.daemon.wait_for(lambda line: f'"container":"{container}"' in line))
        assert (line["message"], line["pod"]) == (f"CREATE file '/data/made-inside' ({row.name}:n) ", row.name)


def test_docs_have_these_rows() -> None:
    page = (ROOT / "docs" / "runtimes.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert "\n".join(rows) == table()
