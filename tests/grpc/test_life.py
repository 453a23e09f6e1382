"""The life of containers: they start late, end, come back under another id, and share names and pods."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

import grpc
import pytest

from argusd.proto import argus_pb2
from demo.container import CGROUPS
from tests.containers import RuncContainer, needs_runc, rootfs_template
from tests.daemon import COMMAND, WAIT_S, Daemon, until

pytestmark = needs_runc

GONE_WITHIN_S = 0.3
ROUNDS = 10
DIRECTORIES = 100

Start = Callable[[], RuncContainer]


@pytest.fixture(scope="module", params=["now", "old"])
def daemon(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """One that holds containers by pidfds, and one on a kernel that knows neither them nor openat2."""
    old = request.param == "old"
    restricted = (sys.executable, "-m", "tests.restricted", "pidfd_open=ENOSYS", "openat2=ENOSYS", "--")
    with Daemon("-log=json", command=(*restricted, *COMMAND) if old else COMMAND) as daemon:
        assert any("pidfd_open(2) is refused" in line for line in daemon.lines) == old
        yield daemon


@pytest.fixture(autouse=True)
def clean(daemon: Daemon, stack: ExitStack) -> Iterator[None]:
    """Each test leaves the daemon without watches, because its containers have ended."""
    yield
    stack.close()
    until(lambda: daemon.state() == [], "a state without pods")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def start(stack: ExitStack) -> Start:
    """Start a container that ends with the test."""
    return lambda: stack.enter_context(RuncContainer())


def config(*cids: str, path: str = "/data", **fields: Any) -> argus_pb2.ArgusdConfig:
    """A request for ``path`` in the containers ``cids``; ``fields`` are those of the config or else of the subject."""
    top = {key: fields.pop(key) for key in ("name", "nodeName", "podName") if key in fields}
    subject = argus_pb2.ArgusWatcherSubject(path=[path], **{"event": ["create"], **fields})
    return argus_pb2.ArgusdConfig(
        **{"name": "w1", "nodeName": "node1", "podName": "web-0", **top}, cid=cids, subject=[subject]
    )


def create(daemon: Daemon, *boxes: RuncContainer, **fields: Any) -> list[int]:
    """Watch containers; returns the pids of the handle."""
    request = config(*(box.uri for box in boxes), **fields)
    return list(daemon.stub.CreateWatch(request, timeout=WAIT_S).pid)


def destroy(daemon: Daemon, *pids: int, name: str = "") -> None:
    """Stop watches of the pod."""
    request = argus_pb2.ArgusdConfig(nodeName="node1", podName="web-0", name=name, pid=pids)
    daemon.stub.DestroyWatch(request, timeout=WAIT_S)


def pids(daemon: Daemon) -> list[list[int]]:
    """The handles of the state, all of which must be of the one pod."""
    state = daemon.state()
    assert {(node, pod) for node, pod, _ in state} <= {("node1", "web-0")}
    return sorted(pids for _, _, pids in state)


def make_file(box: RuncContainer) -> str:
    """Make a file in the watched folder of a container; returns its name."""
    name = secrets.token_hex(8)
    (box.rootfs / "data" / name).touch()
    return name


def reported(daemon: Daemon, name: str) -> list[tuple[str, str]]:
    """The watchers and containers for which something of a file was reported."""
    return [(event["watcher"], event["container"]) for event in daemon.events if event["file"] == name]


def assert_reported(daemon: Daemon, box: RuncContainer, *watchers: str) -> None:
    """A new file in ``box`` is reported once for each of ``watchers``."""
    name = make_file(box)
    until(lambda: len(reported(daemon, name)) >= len(watchers), f"{name} is reported")
    assert sorted(reported(daemon, name)) == sorted((watcher, box.id) for watcher in watchers)


def watches(daemon: Daemon) -> int:
    """How many inotify watches the kernel keeps for the daemon."""
    total = 0
    for info in Path(f"/proc/{daemon.pid}/fdinfo").iterdir():
        with suppress(FileNotFoundError):  # others than that of inotify come and go
            total += info.read_text().count("inotify wd:")
    return total


def test_watches_are_gone_soon_after_the_end(daemon: Daemon, start: Start) -> None:
    took_s = []
    for _ in range(ROUNDS):  # a busy machine may disturb some
        before, box = watches(daemon), start()
        for number in range(DIRECTORIES):
            (box.rootfs / "data" / str(number)).mkdir()
        create(daemon, box, recursive=True)
        assert watches(daemon) >= before + DIRECTORIES
        end_s = time.monotonic()
        box.kill()
        until(lambda before=before: watches(daemon) <= before, "the watches are gone")  # type: ignore[misc]  # of any type
        took_s.append(time.monotonic() - end_s)
        if took_s[-1] <= GONE_WITHIN_S:
            return
    pytest.fail(f"it took {took_s} s")


def test_the_end_gives_everything_back(daemon: Daemon, start: Start) -> None:
    def open_now() -> tuple[int, int]:
        return len(list(Path(f"/proc/{daemon.pid}/fd").iterdir())), watches(daemon)

    for _ in range(4):  # threads have been started, and what they need has been opened
        box = start()
        create(daemon, box)
        box.close()
    until(lambda: watches(daemon) <= 1, "the watches of the warm-up are gone")
    before = open_now()
    for _ in range(3):
        box = start()
        create(daemon, box, recursive=True, followMove=True)
        box.close()
    until(lambda: open_now() == before, f"{before} descriptors and watches")


def test_the_state_never_names_the_dead(daemon: Daemon, start: Start) -> None:
    box, other = start(), start()
    assert create(daemon, box, other) == [box.pid, other.pid]
    box.kill()
    assert pids(daemon) == []
    other.kill()
    assert pids(daemon) == []


def test_one_container_of_a_pod_is_restarted(daemon: Daemon, start: Start) -> None:
    web, sidecar = start(), start()
    create(daemon, web, sidecar)
    assert_reported(daemon, web, "w1")
    web.kill()
    assert pids(daemon) == []  # or a controller would not ask for the pod again
    assert_reported(daemon, sidecar, "w1")
    web = start()
    seen = len(daemon.lines)
    assert create(daemon, web, sidecar) == [web.pid, sidecar.pid]
    daemon.wait_for_text("Updating `inotify` watcher (web-0:node1)", after=seen)
    assert pids(daemon) == [[web.pid, sidecar.pid]]
    assert_reported(daemon, web, "w1")
    assert_reported(daemon, sidecar, "w1")


def test_a_pod_of_which_a_container_was_not_found_is_left_out_of_the_state(daemon: Daemon, start: Start) -> None:
    box = start()
    unknown = f"containerd://{'a' * 64}"
    assert list(daemon.stub.CreateWatch(config(box.uri, unknown), timeout=WAIT_S).pid) == [box.pid]
    assert pids(daemon) == []
    assert_reported(daemon, box, "w1")
    assert create(daemon, box) == [box.pid]
    assert pids(daemon) == [[box.pid]]


def test_a_restart_beside_a_container_loses_none_of_its_events(daemon: Daemon, start: Start) -> None:
    web, sidecar, names = start(), start(), []
    create(daemon, web, sidecar)
    for _ in range(3):
        names.append(make_file(sidecar))
        web.kill()
        names.append(make_file(sidecar))
        web = start()
        call = daemon.stub.CreateWatch.future(config(web.uri, sidecar.uri), timeout=WAIT_S)
        while not call.done():
            names.append(make_file(sidecar))
        assert list(call.result().pid) == [web.pid, sidecar.pid]
    assert_reported(daemon, sidecar, "w1")
    files = [event["file"] for event in daemon.events if event["container"] == sidecar.id]
    assert files[:-1] == names


def test_a_whole_pod_is_restarted(daemon: Daemon, start: Start) -> None:
    old = [start(), start()]
    create(daemon, *old)
    for box in old:
        box.kill()
    assert pids(daemon) == []
    seen = len(daemon.lines)
    new = [start(), start()]
    assert create(daemon, *new) == [box.pid for box in new]
    daemon.wait_for_text("Starting `inotify` watcher (web-0:node1)", after=seen)
    assert pids(daemon) == [[box.pid for box in new]]
    for box in new:
        assert_reported(daemon, box, "w1")


def test_a_pod_comes_back_while_the_old_one_is_still_ending(daemon: Daemon, start: Start) -> None:
    old, new = start(), start()
    create(daemon, old)
    create(daemon, new)
    assert pids(daemon) == sorted([[old.pid], [new.pid]])
    assert_reported(daemon, old, "w1")
    assert_reported(daemon, new, "w1")
    old.kill()
    assert pids(daemon) == [[new.pid]]
    assert_reported(daemon, new, "w1")


def test_pods_of_one_name_in_two_namespaces(daemon: Daemon, start: Start) -> None:
    first, second = [start(), start()], [start(), start()]
    first_pids, second_pids = create(daemon, *first), create(daemon, *second)
    assert pids(daemon) == sorted([first_pids, second_pids])
    create(daemon, *first, event=["create", "delete"])
    assert pids(daemon) == sorted([first_pids, second_pids])
    for box in (*first, *second):
        assert_reported(daemon, box, "w1")
    destroy(daemon, os.getpid())  # of neither
    assert pids(daemon) == sorted([first_pids, second_pids])
    destroy(daemon, second_pids[1])
    assert pids(daemon) == [first_pids]
    name = make_file(second[0])
    assert_reported(daemon, first[1], "w1")
    assert reported(daemon, name) == []
    destroy(daemon, os.getpid())  # the name means one pod only by now
    assert pids(daemon) == []


def test_two_watchers_on_one_pod(daemon: Daemon, start: Start) -> None:
    box, sidecar = start(), start()
    assert create(daemon, box, sidecar) == create(daemon, box, sidecar, name="w2")
    assert pids(daemon) == [[box.pid, sidecar.pid]]
    assert_reported(daemon, box, "w1", "w2")
    create(daemon, box, sidecar, name="w2", event=["delete"])
    assert_reported(daemon, box, "w1")
    create(daemon, box, sidecar, name="w2")
    destroy(daemon, name="w1")
    assert_reported(daemon, sidecar, "w2")
    assert pids(daemon) == [[box.pid, sidecar.pid]]
    create(daemon, box, sidecar)
    box.kill()
    assert pids(daemon) == []
    assert_reported(daemon, sidecar, "w1", "w2")
    sidecar.kill()
    assert pids(daemon) == []


def test_one_container_under_several_names_is_watched_once(daemon: Daemon, start: Start) -> None:
    box = start()
    names = (box.id[:12], box.uri, box.id, box.uri_as("docker"), box.id[:40], box.uri)
    for _ in range(2):
        assert list(daemon.stub.CreateWatch(config(*names), timeout=WAIT_S).pid) == [box.pid]
        assert pids(daemon) == [[box.pid]]
        assert_reported(daemon, box, "w1")


def test_a_container_that_starts_during_the_call(daemon: Daemon, stack: ExitStack) -> None:
    for _ in range(ROUNDS):  # on a busy machine the start may take longer than the call
        box = RuncContainer()
        call = daemon.stub.CreateWatch.future(config(box.uri), timeout=5)
        with pytest.raises(grpc.FutureTimeoutError):
            call.result(timeout=0.3)
        stack.enter_context(box)
        if call.exception() is None:
            assert list(call.result().pid) == [box.pid]
            assert_reported(daemon, box, "w1")
            return
        assert call.code() == grpc.StatusCode.NOT_FOUND
    pytest.fail("no container was found that started during the call")


def test_those_that_run_are_watched_without_those_that_do_not(daemon: Daemon, start: Start) -> None:
    box, seen, absent = start(), len(daemon.lines), f"containerd://{secrets.token_hex(32)}"
    assert list(daemon.stub.CreateWatch(config(absent, box.uri), timeout=WAIT_S).pid) == [box.pid]
    assert "WARNING" in daemon.wait_for_text(f"No running container found for {absent}", after=seen)
    assert_reported(daemon, box, "w1")


class Unfinished:
    """A process in the cgroup of a container that has still the root of its runtime, which is ours."""

    def __init__(self) -> None:
        self.id = secrets.token_hex(32)
        top = next(
            path for path in (CGROUPS, CGROUPS / "unified", CGROUPS / "systemd") if (path / "cgroup.procs").exists()
        )
        self.cgroup = top / f"argusd-{os.getpid()}-{self.id}.slice" / f"docker-{self.id}.scope"

    def __enter__(self) -> Self:
        self.cgroup.mkdir(parents=True)
        script = 'echo $$ > "$0/cgroup.procs" && echo in && read x && exec chroot "$1" /bin/sleep 3600'
        self.process = subprocess.Popen(
            ["sh", "-c", script, self.cgroup, rootfs_template()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "in\n"
        return self

    def finish(self) -> None:
        """Enter the container's root."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        for folder in (self.cgroup, self.cgroup.parent):
            until(lambda folder=folder: removed(folder), f"{folder} is empty")  # type: ignore[misc]  # of any type


def removed(cgroup: Path) -> bool:
    try:
        cgroup.rmdir()
    except OSError:
        return False
    return True


def test_a_container_is_not_entered_before_it_has_a_root_of_its_own(
    daemon: Daemon, stack: ExitStack, tmp_path: Path
) -> None:
    before = watches(daemon)
    making = stack.enter_context(Unfinished())
    request = config(making.id, path=str(tmp_path))
    with pytest.raises(grpc.RpcError) as failure:
        daemon.stub.CreateWatch(request, timeout=1.5)
    assert failure.value.code() == grpc.StatusCode.NOT_FOUND
    assert f"process {making.process.pid} of {making.id} has no root of its own yet" in str(failure.value.details())
    call = daemon.stub.CreateWatch.future(config(making.id), timeout=5)
    with pytest.raises(grpc.FutureTimeoutError):
        call.result(timeout=0.5)
    assert watches(daemon) == before
    making.finish()
    assert list(call.result().pid) == [making.process.pid]
    file = rootfs_template() / "data" / secrets.token_hex(8)
    file.touch()
    until(lambda: reported(daemon, file.name) == [("w1", making.id)], "what happens in its own root is reported")
    file.unlink()
