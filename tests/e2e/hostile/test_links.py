"""Links, and files that are no files: nothing outside of the container is watched, opened or reported."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import Final

import pytest

from tests.daemon import Daemon
from tests.e2e.hostile.hunt import (
    SONG,
    Canaries,
    HostileContainer,
    Hunt,
    Inotify,
    create,
    destroy,
    event_of,
    inode,
    report,
    watched,
)
from tests.waiting import until


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
