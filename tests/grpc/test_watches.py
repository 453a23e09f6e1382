"""Watches of local processes: create, update, destroy, state, container end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from argusd.proto import argus_pb2
from tests.daemon import WAIT_S, Daemon
from tests.grpc.conftest import Workload

Pod = Callable[[], int]


@pytest.fixture(autouse=True)
def clean(daemon: Daemon, workload: Workload) -> Iterator[None]:
    yield
    workload.end_all()  # the daemon drops watches whose processes have ended
    wait_for_state(daemon, [])


def wait_for_state(daemon: Daemon, expected: list[tuple[str, str, list[int]]]) -> None:
    deadline = time.monotonic() + WAIT_S
    while (state := sorted(daemon.state())) != sorted(expected):
        assert time.monotonic() < deadline, state


def destroy(daemon: Daemon, node: str, pod: str, *pids: int, name: str = "") -> None:
    request = argus_pb2.ArgusdConfig(nodeName=node, podName=pod, name=name, pid=pids)
    assert daemon.stub.DestroyWatch(request, timeout=WAIT_S) == argus_pb2.Empty()


def events_of(daemon: Daemon, folder: Path) -> list[tuple[str, str]]:
    """The events of ``folder`` so far, up to one that is made on purpose."""
    number = len(list(folder.iterdir()))
    marker = folder / f"marker-{number}"
    marker.touch()
    daemon.wait_for_text(f"'{marker}'")
    events = [(record["event"], record["file"]) for record in daemon.events if record["path"] == str(folder)]
    return [(event, file) for event, file in events if not file.startswith("marker")]


def test_events_of_a_process_are_reported(daemon: Daemon, pod: Pod, tmp_path: Path) -> None:
    pid = pod()
    handle = daemon.create_watch(pid, str(tmp_path), event=["create", "modify", "delete"], tags={"b": "2", "a": "1"})
    assert (handle.nodeName, handle.podName, list(handle.pid)) == ("node1", "pod1", [pid])
    (tmp_path / "x").write_text("x")
    (tmp_path / "x").unlink()
    assert events_of(daemon, tmp_path) == [("CREATE", "x"), ("MODIFY", "x"), ("DELETE", "x")]
    record = next(record for record in daemon.events if record["path"] == str(tmp_path))
    assert record["message"] == f"CREATE file '{tmp_path}/x' (pod1:node1) a=1,b=2"
    assert (record["pod"], record["node"], record["watcher"]) == ("pod1", "node1", "w1")
    assert record["tags"] == {"a": "1", "b": "2"}


def test_update_reports_what_is_asked_for_now(daemon: Daemon, pod: Pod, tmp_path: Path) -> None:
    pid, seen = pod(), len(daemon.lines)
    daemon.create_watch(pid, str(tmp_path), event=["create"])
    daemon.wait_for_text("Starting `inotify` watcher (pod1:node1)", after=seen)
    daemon.create_watch(pid, str(tmp_path), event=["create", "delete"])
    daemon.wait_for_text("Updating `inotify` watcher (pod1:node1)", after=seen)
    (tmp_path / "x").touch()
    (tmp_path / "x").unlink()
    assert events_of(daemon, tmp_path) == [("CREATE", "x"), ("DELETE", "x")]
    assert daemon.state() == [("node1", "pod1", [pid])]


def test_same_config_again_loses_and_doubles_nothing(daemon: Daemon, pod: Pod, tmp_path: Path) -> None:
    pid = pod()
    names = [f"f{number}" for number in range(50)]
    daemon.create_watch(pid, str(tmp_path), event=["create"])
    for name in names:
        (tmp_path / name).touch()
        daemon.create_watch(pid, str(tmp_path), event=["create"])
    assert events_of(daemon, tmp_path) == [("CREATE", name) for name in names]


def test_destroyed_watch_is_quiet(daemon: Daemon, pod: Pod, tmp_path: Path) -> None:
    gone, stays = tmp_path / "gone", tmp_path / "stays"
    gone.mkdir()
    stays.mkdir()
    seen = len(daemon.lines)
    daemon.create_watch(pod(), str(gone), event=["create"])
    daemon.create_watch(pod(), str(stays), event=["create"], podName="pod2")
    destroy(daemon, "node1", "pod1")
    daemon.wait_for_text("Stopping `inotify` watcher (pod1:node1)", after=seen)
    (gone / "x").touch()
    (stays / "x").touch()
    assert events_of(daemon, stays) == [("CREATE", "x")]
    assert not [record for record in daemon.events if record["path"] == str(gone)]


def test_destroy_of_nothing_is_ok_and_says_nothing(daemon: Daemon) -> None:
    seen = len(daemon.lines)
    destroy(daemon, "node1", "nobody", 1)
    assert not any("Stopping" in line for line in daemon.lines[seen:])


def test_pids_of_another_pod_are_never_acted_on(daemon: Daemon, pod: Pod, tmp_path: Path) -> None:
    first, second = pod(), pod()
    daemon.create_watch(first, str(tmp_path), podName="pod1")
    daemon.create_watch(second, str(tmp_path), podName="pod2")
    destroy(daemon, "node1", "pod1", second)
    assert daemon.state() == [("node1", "pod2", [second])]


def test_two_pods_of_one_name_are_told_apart_by_pid(daemon: Daemon, pod: Pod, tmp_path: Path) -> None:
    first, second, stranger = pod(), pod(), pod()
    daemon.create_watch(first, str(tmp_path))
    daemon.create_watch(second, str(tmp_path))
    seen = len(daemon.lines)
    destroy(daemon, "node1", "pod1", stranger)
    assert "WARNING" in daemon.wait_for_text("Several pods", after=seen)
    assert sorted(daemon.state()) == sorted([("node1", "pod1", [first]), ("node1", "pod1", [second])])
    destroy(daemon, "node1", "pod1", second)
    assert daemon.state() == [("node1", "pod1", [first])]


def test_destroy_by_name_leaves_the_pods_other_watch(daemon: Daemon, pod: Pod, tmp_path: Path) -> None:
    pid = pod()
    daemon.create_watch(pid, str(tmp_path), event=["create"], name="w1")
    daemon.create_watch(pid, str(tmp_path), event=["delete"], name="w2")
    assert daemon.state() == [("node1", "pod1", [pid])]
    destroy(daemon, "node1", "pod1", name="w2")
    assert daemon.state() == [("node1", "pod1", [pid])]
    (tmp_path / "x").touch()
    (tmp_path / "x").unlink()
    assert events_of(daemon, tmp_path) == [("CREATE", "x")]


def test_destroy_without_a_pod_goes_by_pid(daemon: Daemon, pod: Pod, tmp_path: Path) -> None:
    first, second = pod(), pod()
    daemon.create_watch(first, str(tmp_path), podName="")
    daemon.create_watch(second, str(tmp_path), podName="pod2")
    destroy(daemon, "node1", "", second)
    assert daemon.state() == [("node1", "", [first])]
    destroy(daemon, "node1", "")
    assert daemon.state() == [("node1", "", [first])]


def test_container_end_drops_the_watch(daemon: Daemon, pod: Pod, workload: Workload, tmp_path: Path) -> None:
    pid, seen = pod(), len(daemon.lines)
    daemon.create_watch(pid, str(tmp_path))
    workload.end(pid)
    assert daemon.state() == []
    daemon.wait_for_text(f"Process {pid} has ended (pod1:node1)", after=seen)


def test_missing_path_is_answered_ok_with_one_line(daemon: Daemon, pod: Pod, tmp_path: Path) -> None:
    seen, missing = len(daemon.lines), tmp_path / "missing"
    daemon.create_watch(pod(), str(missing), str(tmp_path), event=["create"])
    daemon.wait_for_text(f"'{missing}' does not exist", after=seen)
    (tmp_path / "x").touch()
    assert events_of(daemon, tmp_path) == [("CREATE", "x")]
    assert sum(str(missing) in line for line in daemon.lines[seen:]) == 1


def test_two_subjects_on_one_folder_report_each(daemon: Daemon, pod: Pod, tmp_path: Path) -> None:
    subjects = [
        argus_pb2.ArgusWatcherSubject(path=[str(tmp_path)], event=["create"], tags={"n": number}) for number in "12"
    ]
    request = argus_pb2.ArgusdConfig(name="w1", nodeName="node1", podName="pod1", pid=[pod()], subject=subjects)
    daemon.stub.CreateWatch(request, timeout=WAIT_S)
    (tmp_path / "x").touch()
    assert events_of(daemon, tmp_path) == [("CREATE", "x")] * 2
