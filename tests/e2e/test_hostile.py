"""A hostile container: nothing that it does leads the daemon to what is outside of it.

Every test here hunts for an escape while the container attacks; see hostile.py for what would show one.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import errno
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import grpc
import pytest

from argusd.flags import Settings
from demo.container import CGROUPS, missing_for_runc
from tests.containers import RuncContainer
from tests.daemon import Daemon
from tests.e2e.hostile import (
    SONG,
    Canaries,
    HostileContainer,
    Hunt,
    Inotify,
    create,
    destroy,
    event_of,
    inode,
    inodes_below,
    until,
    watched,
)

pytestmark = pytest.mark.skipif(bool(missing_for_runc()), reason=missing_for_runc() or "containers can run here")

ROUNDS: Final = int(os.environ.get("ARGUSD_HOSTILE_ROUNDS", "100000"))
LOOKUPS: Final = int(os.environ.get("ARGUSD_HOSTILE_LOOKUPS", "60"))
"""The least numbers of swaps and of CreateWatch calls in each swap attack; for more of them by hand."""

WAYS: Final = (
    {"openat2": ("-enter=openat2",), "setns": ("-enter=setns",)}
    if "enter" in {field.name for field in dataclasses.fields(Settings)}
    else {"default": ()}
)
"""The ways into a container, each with the flags that choose it."""

DEEP_LEVELS: Final = 4096
LIBRARIES: Final = ("lib", "lib64", "lib/x86_64-linux-gnu", "usr/lib", "usr/lib64", "usr/lib/x86_64-linux-gnu")


@pytest.fixture(scope="module")
def canaries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Canaries]:
    canaries = Canaries(tmp_path_factory.mktemp("host"))
    yield canaries
    canaries.close()


@pytest.fixture(scope="module", params=WAYS)
def daemon(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    with Daemon("-log=json", *WAYS[request.param]) as daemon:
        yield daemon


@pytest.fixture
def box() -> Iterator[HostileContainer]:
    with HostileContainer() as box:
        yield box


@pytest.fixture
def pod(box: HostileContainer) -> str:
    """A name for the box that no other test has in the daemon's log."""
    return f"pod-{box.id[:12]}"


@pytest.fixture
def hunt(daemon: Daemon, canaries: Canaries, box: HostileContainer) -> Iterator[Hunt]:
    until(lambda: not watched(daemon.pid), "no watches of the test before")
    with Hunt(daemon, canaries, [box.rootfs.parent]) as hunt:
        yield hunt
        # At rest there is nothing but what is in the container.
        until(lambda: watched(daemon.pid) <= inodes_below(box.root), "all watches are in the container")


def report(box: HostileContainer, daemon: Daemon, pod: str, folder: str, name: str) -> None:
    """Make a file in the container and wait until it is reported: the watch works."""
    box.exec(["touch", f"{folder}/{name}"])
    until(lambda: event_of(daemon, pod, name), f"an event of {folder}/{name}")


def test_the_hunt_sees_what_it_is_for(daemon: Daemon, canaries: Canaries) -> None:
    hunt = Hunt(daemon, canaries)
    with pytest.raises(AssertionError, match=SONG), hunt:  # noqa: PT012  (the hunt fails at its end)
        daemon.create_watch(os.getpid(), str(canaries.singing), event=["create"], recursive=True, podName="host")
        (canaries.silent / "key").read_text()
        until(lambda: len(hunt.findings()) > 5, "an escape that is none, seen")
    destroy(daemon, "host")
    found = " ".join(hunt.findings())
    assert "was watched" in found
    assert inode(canaries.singing / "sub" / "below") in hunt.escapes
    with pytest.raises(AssertionError, match="silent"), Hunt(daemon, canaries):
        (canaries.silent / "key").read_text()


LINKS: Final = {
    "absolute": "{canary}",
    "relative": "../../../../../../../../../..{canary}",
    "with dots": "/./../data/..//.{canary}/.",
    "through init's root": "/proc/1/root{canary}",
    "through its own root": "/proc/self/root{canary}",
    "through a thread's root": "/proc/thread-self/root{canary}",
    "through its folder": "/proc/self/cwd/../../../../../../..{canary}",
    "through a task": "/proc/1/task/1/root/proc/1/cwd{canary}",
    "through a descriptor": "/proc/self/fd/3{canary}",
    "chain": "/data/links/1",
}


@pytest.mark.parametrize("target", LINKS.values(), ids=LINKS.keys())
def test_a_link_ends_in_the_container(
    daemon: Daemon, canaries: Canaries, hunt: Hunt, box: HostileContainer, pod: str, target: str
) -> None:
    canary = str(canaries.singing)
    target = target.format(canary=canary)
    links = box.rootfs / "data" / "links"
    links.mkdir()
    steps = [links / "1", links / "2", links / "3", links / "4"]
    for step, there in zip(steps, ("2", "/data/links/3", "../links/4", f"../../../../..{canary}"), strict=True):
        step.symlink_to(there)
    (box.rootfs / "data" / "way").symlink_to(target)
    direct = target if target.startswith("/") else f"/data/{target}"
    create(daemon, box.uri, "/data/way", "/data/way/sub", "/data/way/key", direct, pod=pod, recursive=True)
    looks = hunt.looks
    until(lambda: hunt.looks > looks + 5, "some looks at the watches")
    if "self" in target:  # the daemon is not in the container's pid namespace: it is nobody there
        return
    decoy = Path(f"{box.rootfs}{canary}/sub")
    decoy.mkdir(parents=True)
    until(lambda: inode(decoy) in watched(daemon.pid), "the same path in the container is watched")
    (decoy / "found").touch()
    until(lambda: event_of(daemon, pod, "found"), "an event in the container's own folder")


def test_links_without_an_end(daemon: Daemon, hunt: Hunt, box: HostileContainer, pod: str) -> None:
    data = box.rootfs / "data"
    for name, target in {
        "self": "self", "ping": "pong", "pong": "/data/ping", "up": "..", "down": "down/down", "long": "/" + "x" * 4000,
        "many": "/".join(["."] * 2000), "root": "/", "wide": "/".join([".."] * 1300),
    }.items():  # fmt: skip
        (data / name).symlink_to(target)
    for number in range(45):
        (data / f"chain{number}").symlink_to(f"chain{number + 1}")
    (data / "chain45").mkdir()
    paths = [f"/data/{name}" for name in ("self", "ping", "down/x", "long", "many/x", "wide", "chain0", "chain20")]
    create(daemon, box.uri, *paths, "/data/up/up/up/data", "/data/root/data/root/data", pod=pod)
    report(box, daemon, pod, "/data", "x")
    events = [event for event in daemon.events if event["pod"] == pod and event["file"] == "x"]
    assert {event["path"] for event in events} == {"/data/root/data/root/data"}, "one line for each watch"
    report(box, daemon, pod, "/data/chain45", "y")
    assert hunt.findings() == []


@pytest.mark.parametrize("kind", ["fifo", "device", "socket"])
def test_what_is_no_file_is_not_opened(
    daemon: Daemon, hunt: Hunt, box: HostileContainer, pod: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = box.rootfs / "data" / "special"
    folder.mkdir()
    special = folder / "it"
    if kind == "fifo":
        os.mkfifo(special)
    elif kind == "device":
        os.mknod(special, 0o600 | 0o020000, os.makedev(10, 130))  # the watchdog: to open it would start it
    else:
        monkeypatch.chdir(folder)  # the path of a socket is short
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("it")
    listener_of_ours = Inotify([special], mask=0x21)  # IN_OPEN, IN_ACCESS
    paths = ("/data/special/it", "/data/special", "/data/special/it/below")
    create(daemon, box.uri, *paths, pod=pod, recursive=True, event=["all"])
    create(daemon, box.uri, *paths, pod=f"{pod}-only", onlyDir=True, event=["all"])
    box.exec(["chmod", "600", "/data/special/it"])
    until(lambda: any(e["path"] == "/data/special/it" and e["pod"] == pod for e in daemon.events), "ATTRIB of its own")
    report(box, daemon, pod, "/data/special", "beside")
    special.rename(folder / "moved")
    until(lambda: event_of(daemon, pod, "moved"), "it moved")
    if kind == "fifo":
        with pytest.raises(OSError, match=os.strerror(errno.ENXIO)):
            os.close(os.open(folder / "moved", os.O_WRONLY | os.O_NONBLOCK))  # nobody reads it
    assert listener_of_ours.read() == b""
    listener_of_ours.close()
    assert hunt.findings() == []


ABSOLUTE: Final = "{canary}"
RELATIVE: Final = "../../../../../../../..{canary}"
SWAPS: Final = {
    "exchange": (ABSOLUTE, 1, "swap", "/data/tree/swap", "/data/tree/bait"),
    "exchange, relative": (RELATIVE, 1, "swap", "/data/tree/swap", "/data/tree/bait"),
    "exchange above": (ABSOLUTE, 1, "swap", "/data/tree", "/data/bait"),
    "replace": (RELATIVE, 4, "replace", "/data/tree/swap", "/data/tree/aside", "{bait}"),
    "relink": (ABSOLUTE, 4, "relink", "/data/tree/link", "swap", "{bait}"),
}
"""The bait, how many system calls a round takes, and the attack."""


@pytest.mark.parametrize("attack", SWAPS.values(), ids=SWAPS.keys())
def test_a_swapped_component_leads_nowhere(
    daemon: Daemon,
    canaries: Canaries,
    hunt: Hunt,
    box: HostileContainer,
    pod: str,
    attack: tuple[str, int, *tuple[str, ...]],
) -> None:
    template, calls_a_round, *words = attack
    bait, rounds = template.format(canary=canaries.singing), ROUNDS // calls_a_round
    tree = box.rootfs / "data" / "tree"
    (tree / "swap" / "sub" / "below").mkdir(parents=True)
    (tree / "swap" / "key").touch()
    (tree / "swap" / "sub" / "key").touch()
    (tree / "bait").symlink_to(bait)
    (tree.parent / "bait").symlink_to(bait)
    (tree / "link").symlink_to("swap")
    paths = [
        f"/data/tree/{name}{below}" for name in ("swap", "link") for below in ("", "/sub", "/sub/below", "/sub/key")
    ]
    calls = 0
    create(daemon, box.uri, *paths, pod=pod, event=["delete", "attrib"])
    create(
        daemon, box.uri, "/data/tree", "/data/tree/swap", pod=f"{pod}-tree", event=["delete", "attrib"], recursive=True
    )

    def again(number: int) -> None:
        mine = f"{pod}-{number}"
        create(daemon, box.uri, *paths, "/data", pod=mine, event=["delete", "attrib"], recursive=number % 2 == 0)
        create(daemon, box.uri, *paths[number % 8 :], pod=mine, event=["delete"], recursive=number % 2 == 0)
        destroy(daemon, mine)

    command = [word.format(bait=bait) for word in words]
    with box.attacking(*command, str(rounds)) as attacking, concurrent.futures.ThreadPoolExecutor(2) as pool:
        for done in pool.map(again, range(LOOKUPS)):
            assert done is None
            calls += 1
    assert attacking.rounds >= rounds
    print(f"\n{attacking.rounds} swaps, {calls} x {2 * len(paths)} paths looked up and durable ones again, "
          f"{hunt.looks} looks at the watches, {len(hunt.escapes)} escapes")  # fmt: skip
    assert hunt.findings() == []


def test_a_followed_path_is_swapped(
    daemon: Daemon, canaries: Canaries, hunt: Hunt, box: HostileContainer, pod: str
) -> None:
    tree = box.rootfs / "data" / "tree"
    (tree / "swap" / "sub").mkdir(parents=True)
    (tree / "bait").symlink_to(canaries.singing)
    paths = ("/data/tree/swap", "/data/tree/swap/sub")
    create(daemon, box.uri, *paths, pod=pod, event=["delete"], recursive=True, followMove=True)
    with box.attacking("swap", "/data/tree/swap", "/data/tree/bait", str(ROUNDS // 4)) as attacking:
        pass
    assert attacking.rounds >= ROUNDS // 4
    assert hunt.findings() == []


def test_a_tree_of_4096_levels(daemon: Daemon, hunt: Hunt, box: HostileContainer, pod: str) -> None:
    (box.rootfs / "data" / "deep").mkdir()
    box.attack("deep", "/data/deep", str(DEEP_LEVELS), "d")
    paths = ("/data/deep", f"/data/deep{'/d' * 2000}")
    create(daemon, box.uri, *paths, pod=pod, recursive=True, event=["closewrite"])
    assert len(watched(daemon.pid)) > DEEP_LEVELS
    box.attack("deep", "/data/deep", str(DEEP_LEVELS), "d")
    until(lambda: event_of(daemon, pod, "bottom"), "the event at the bottom")
    event = event_of(daemon, pod, "bottom")
    assert event
    assert event["path"] == "/data/deep" + "/d" * DEEP_LEVELS
    destroy(daemon, pod)
    subprocess.run(["rm", "-r", box.rootfs / "data" / "deep"], check=True)  # Python's rmtree does not go that deep
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


def test_libraries_in_the_container_are_not_loaded(daemon: Daemon, hunt: Hunt, box: HostileContainer, pod: str) -> None:
    planted = []
    for folder in LIBRARIES:
        (box.rootfs / folder).mkdir(parents=True, exist_ok=True)
        for name in ("libgcc_s.so.1", "libc.so.6", "libpthread.so.0", "libnss_files.so.2"):
            (box.rootfs / folder / name).write_bytes(b"\x7fELF not a library")
            planted.append(box.rootfs / folder / name)
    for name in ("ld.so.cache", "ld.so.preload", "nsswitch.conf", "localtime"):
        (box.rootfs / "etc" / name).write_text("/lib/libgcc_s.so.1")
        planted.append(box.rootfs / "etc" / name)
    listener = Inotify(planted, mask=0x21)  # IN_OPEN, IN_ACCESS
    for number in range(20):
        create(daemon, box.uri, "/data", "/lib/x", pod=f"{pod}-{number}", recursive=True)
        new = box.rootfs / "data" / f"d{number}"
        new.mkdir()
        until(lambda new=new: inode(new) in watched(daemon.pid), "watched")  # type: ignore[misc]  # of any type
    for number in range(20):
        destroy(daemon, f"{pod}-{number}")
    assert listener.read() == b""
    listener.close()
    assert str(box.rootfs) not in Path(f"/proc/{daemon.pid}/maps").read_text()
    assert hunt.findings() == []


def test_init_becomes_another_program(daemon: Daemon, hunt: Hunt, box: HostileContainer, pod: str) -> None:
    handle = create(daemon, box.uri, "/data", pod=pod, recursive=True)
    os.kill(box.pid, signal.SIGHUP)
    until(lambda: Path(f"/proc/{box.pid}/comm").read_text() == "busybox\n", "another program")
    assert (("node1", pod, list(handle.pid))) in daemon.state()
    (box.rootfs / "data" / "new").mkdir()
    report(box, daemon, pod, "/data/new", "x")
    assert list(create(daemon, box.uri, "/data", pod=pod, recursive=True).pid) == [box.pid]
    assert hunt.findings() == []


def test_init_changes_its_root(daemon: Daemon, hunt: Hunt, box: HostileContainer, pod: str, canaries: Canaries) -> None:
    jail = box.rootfs / "jail" / "data"
    jail.mkdir()
    (jail / "out").symlink_to(f"../../../../../..{canaries.singing}")
    (box.rootfs / "data" / "out").mkdir()
    create(daemon, box.uri, "/data", "/data/out", "/data/../../..", pod=pod, recursive=True, ignore=["proc", "dev"])
    os.kill(box.pid, signal.SIGUSR1)
    until(lambda: inode(Path(f"/proc/{box.pid}/root")) == inode(jail.parent), "the new root")
    # A step of the paths changes: they are looked up again, in what is the root now.
    (box.rootfs / "data").rename(box.rootfs / "gone")
    create(daemon, box.uri, "/data", pod=f"{pod}-later", recursive=True)
    (jail / "x").touch()
    until(lambda: event_of(daemon, f"{pod}-later", "x"), "an event in the new root")
    assert hunt.findings() == []


def test_init_is_killed_during_the_walk(daemon: Daemon, hunt: Hunt, box: HostileContainer, pod: str) -> None:
    (box.rootfs / "data" / "wide").mkdir()
    box.attack("wide", "/data/wide", "3000")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        calls = [
            pool.submit(create, daemon, box.uri, "/data", pod=f"{pod}-{number}", recursive=True, event=["all"])
            for number in range(4)
        ]
        until(lambda: len(watched(daemon.pid)) > 100, "a walk on its way")
        box.kill()
        for call in calls:
            with suppress(grpc.RpcError):  # NOT_FOUND, or it was quick enough
                call.result()
    until(lambda: not watched(daemon.pid), "all watches are gone")
    assert not [handle for handle in daemon.state() if handle[1].startswith(pod)]
    assert hunt.findings() == []


def test_directories_come_and_go_during_the_walk(daemon: Daemon, hunt: Hunt, box: HostileContainer, pod: str) -> None:
    (box.rootfs / "data" / "wide").mkdir()
    box.attack("wide", "/data/wide", "2000")
    with box.attacking("flood", "/data/wide", "1000") as attacking:
        for number in range(5):
            create(daemon, box.uri, "/data", pod=f"{pod}-{number}", recursive=True, event=["attrib"])
    assert attacking.rounds >= 1000
    box.exec(["chmod", "700", "/data/wide"])
    until(lambda: event_of(daemon, f"{pod}-4", "wide"), "an event afterwards")
    assert hunt.findings() == []


def test_a_process_may_call_itself_anything(daemon: Daemon, box: HostileContainer, pod: str) -> None:
    assert Path(f"/proc/{box.pid}/comm").read_text() == ") Z 1\n(sh\n"
    assert list(create(daemon, box.uri, "/data", pod=pod).pid) == [box.pid]


def test_a_cgroup_is_named_after_another_container(daemon: Daemon, hunt: Hunt, box: HostileContainer, pod: str) -> None:
    with RuncContainer() as victim:
        for hierarchy in [CGROUPS, *CGROUPS.iterdir()]:
            own = Path(f"{hierarchy}{box.cgroup}")
            if (own / "cgroup.procs").exists():
                for name in (victim.id, f"docker-{victim.id}.scope", f"x:y:{victim.id}"):
                    (own / name).mkdir()
                with suppress(OSError):  # a cpuset that is not set up takes nobody in
                    (own / victim.id / "cgroup.procs").write_text(str(box.pid))
        try:
            assert list(create(daemon, victim.uri, "/data", pod=pod).pid) == [victim.pid]
            assert list(create(daemon, box.uri, "/data", pod=f"{pod}-hostile").pid) == [box.pid]
        finally:
            box.kill()
            for hierarchy in [CGROUPS, *CGROUPS.iterdir()]:
                for name in (victim.id, f"docker-{victim.id}.scope", f"x:y:{victim.id}"):
                    with suppress(FileNotFoundError, NotADirectoryError):
                        Path(f"{hierarchy}{box.cgroup}", name).rmdir()
        assert hunt.findings() == []


def test_a_container_that_is_just_starting_is_not_looked_for_on_the_host(daemon: Daemon, canaries: Canaries) -> None:
    with Hunt(daemon, canaries) as hunt, concurrent.futures.ThreadPoolExecutor(1) as pool:
        for number in range(5):
            box = RuncContainer()
            # Its cgroup is there before its root is: the daemon asks again and again from before it is started.
            calls = [
                pool.submit(create, daemon, box.uri, "/etc", str(canaries.singing), pod=f"start-{number}-{turn}")
                for turn in range(1)
            ]
            with box:
                assert [list(call.result().pid) for call in calls] == [[box.pid]]
                assert watched(daemon.pid) <= inodes_below(box.root)
        assert hunt.findings() == []
