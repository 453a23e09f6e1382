"""Deep trees, mounts and roots: the container's own world, turned upside down."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.daemon import Daemon
from tests.e2e.hostile.hunt import Canaries, HostileContainer, Hunt, create, destroy, event_of, inode, report, watched
from tests.waiting import until

DEEP_LEVELS: Final = 4096


@pytest.fixture
def deep(box: HostileContainer) -> Iterator[Path]:
    """A directory that is removed with all that is in it: Python's rmtree does not go that deep."""
    folder = box.rootfs / "data" / "deep"
    folder.mkdir()
    yield folder
    subprocess.run(["rm", "-r", folder], check=True)


@pytest.mark.usefixtures("deep")
def test_a_tree_of_4096_levels(daemon: Daemon, hunt: Hunt, box: HostileContainer, pod: str) -> None:
    box.attack("deep", "/data/deep", str(DEEP_LEVELS), "d")
    paths = ("/data/deep", f"/data/deep{'/d' * 2000}")
    create(daemon, box.uri, *paths, pod=pod, recursive=True, event=["closewrite"])
    assert len(watched(daemon.pid)) > DEEP_LEVELS
    box.attack("deep", "/data/deep", str(DEEP_LEVELS), "d")
    until(lambda: event_of(daemon, pod, "bottom"), "the event at the bottom")
    event = event_of(daemon, pod, "bottom")
    assert event
    begin, end = "/data/deep" + "/d" * 507, "/d" * 1024  # 1,024 and 2,048 bytes: no path that long can be used
    assert event["path"] == f"{begin}//…{DEEP_LEVELS - 507 - 1024} directories…/{end}"
    destroy(daemon, pod)
    assert hunt.findings() == []


def test_a_mount_over_the_watched_path(
    daemon: Daemon, canaries: Canaries, hunt: Hunt, box: HostileContainer, pod: str
) -> None:
    (box.rootfs / "data" / "sub").mkdir()
    create(daemon, box.uri, "/data", "/data/sub", pod=pod, recursive=True)
    # What is mounted has a link to the canary, at a name that was a directory before.
    box.privileged(f"mount -t tmpfs none /data; mkdir /data/real; ln -s {canaries.singing} /data/sub")
    mounted = box.root / "data" / "real"
    until(lambda: inode(mounted) in watched(daemon.pid), "the mounted directory is watched")
    report(box, daemon, pod, "/data/real", "in-the-mount")
    box.privileged("umount /data")
    report(box, daemon, pod, "/data/sub", "below-the-mount")
    assert hunt.findings() == []


@pytest.mark.parametrize("kind", ["proc", "sysfs", "devpts", "cgroup2", "mqueue"])
def test_a_file_system_of_the_kernel_is_mounted_in_the_tree(
    daemon: Daemon, hunt: Hunt, box: HostileContainer, pod: str, kind: str
) -> None:
    (box.rootfs / "data" / kind).mkdir()
    try:
        box.privileged(f"mount -t {kind} none /data/{kind}")
    except subprocess.CalledProcessError:
        pytest.skip(f"{kind} cannot be mounted here")
    create(daemon, box.uri, "/data", f"/data/{kind}/1/root", f"/data/{kind}/self", pod=pod, recursive=True, maxDepth=4)
    report(box, daemon, pod, "/data", "beside")
    destroy(daemon, pod)
    until(lambda: not watched(daemon.pid), "all watches are gone")
    assert hunt.findings() == []


def test_proc_in_the_container_is_not_what_it_seems(
    daemon: Daemon, canaries: Canaries, hunt: Hunt, box: HostileContainer, pod: str
) -> None:
    # Whoever looked into /proc from inside of the container would find links to the canary for every descriptor.
    canary = canaries.singing
    fake = f"""
        mount -t tmpfs none /proc && cd /proc
        for process in 1 self thread-self; do
            mkdir -p $process/fd $process/task
            ln -s {canary} $process/root && ln -s {canary} $process/cwd && ln -s {canary}/key $process/mountinfo
            for number in $(seq 0 99); do ln -s {canary} $process/fd/$number; done
        done
    """
    box.privileged(fake)
    (box.rootfs / "data" / "tree" / "sub").mkdir(parents=True)
    (box.rootfs / "data" / "file").touch()
    paths = ("/data/tree", "/data/file", "/proc/self", "/proc/self/fd/7", "/proc/1/root", "/proc/self/root/sub")
    create(daemon, box.uri, *paths, pod=pod, recursive=True, followMove=True)
    (box.rootfs / "data" / "tree" / "sub" / "x").touch()  # nothing can be started in such a container
    until(lambda: event_of(daemon, pod, "x"), "an event in the tree")
    (box.rootfs / "data" / "file").write_text("x")
    until(
        lambda: any(event["path"] == "/data/file" and event["pod"] == pod for event in daemon.events), "a file's event"
    )
    (box.rootfs / "data" / "file").rename(box.rootfs / "data" / "elsewhere")
    (box.rootfs / "data" / "elsewhere").write_text("y")
    until(lambda: any(event["path"] == "/data/elsewhere" for event in daemon.events), "a followed file's new path")
    assert hunt.findings() == []


def test_init_changes_its_root(daemon: Daemon, hunt: Hunt, box: HostileContainer, pod: str, canaries: Canaries) -> None:
    jail = box.rootfs / "jail" / "data"
    jail.mkdir()
    (jail / "out").symlink_to(f"../../../../../..{canaries.singing}")
    (box.rootfs / "data" / "out").mkdir()
    create(daemon, box.uri, "/data", "/data/out", "/data/../../..", pod=pod, recursive=True, ignore=["proc", "dev"])
    os.kill(box.pid, signal.SIGUSR1)
    until(lambda: inode(Path(f"/proc/{box.pid}/root")) == inode(jail.parent), "the new root")
    # A step of the paths changes: they are looked up again, in the root that there was when they were first.
    (box.rootfs / "data").rename(box.rootfs / "gone")
    (box.rootfs / "data").mkdir()

    def again() -> bool:
        (box.rootfs / "data" / "x").touch()
        (box.rootfs / "data" / "x").unlink()
        return event_of(daemon, pod, "x") is not None

    until(again, "an event in the old root")
    assert hunt.findings() == []
