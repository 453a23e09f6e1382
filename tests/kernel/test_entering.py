"""Both ways into a container: nothing leads out of it, nothing of it stays open, nothing in it is loaded."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest

from argusd._inotify import EVENTS, Engine
from argusd._output import Output
from tests.kernel import test_paths
from tests.kernel.background import Background
from tests.kernel.container import Container, Way
from tests.kernel.story import TIMEOUT_S, Stage, Story, Watching, exchange, parse
from tests.kernel.test_engine import descriptors
from tests.waiting import until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: processes are given a root of their own")

ROUNDS: Final = 10_000
MNT_DETACH: Final = 2

_libc: Final = ctypes.CDLL(None, use_errno=True)

INSIDE = r"""
a link that climbs above the root stays at the root
    makedirs /d/a
    symlink  ../../../../../../../../e /d/a/up
    watch    /d/a/up recursive create
    touch    /e/x        -> CREATE file /d/a/up/x
    mkdir    /e/new      -> CREATE directory /d/a/up/new
    touch    /e/new/x    -> CREATE file /d/a/up/new/x

a path that climbs above the root stays at the root
    watch    /d/../../../../e recursive create
    mkdir    /e/new      -> CREATE directory /d/../../../../e/new
    touch    /e/new/x    -> CREATE file /d/../../../../e/new/x

a path goes back through a link to where the link leads
    makedirs /e/deep/er
    symlink  /e/deep /d/l
    watch    /d/l/er/../er recursive create
    mkdir    /e/deep/er/new -> CREATE directory /d/l/er/../er/new
    touch    /e/deep/er/new/x -> CREATE file /d/l/er/../er/new/x

an absolute link leads to the root of the container
    symlink  /e /d/l
    watch    /d/l recursive create
    mkdir    /e/new      -> CREATE directory /d/l/new
    touch    /e/new/x    -> CREATE file /d/l/new/x

a link to a link with a dot and doubled slashes in it
    symlink  ./../d/.//two /d/one
    symlink  //e/./ /d/two
    watch    /d/one recursive create
    mkdir    /e/new      -> CREATE directory /d/one/new
    touch    /e/new/x    -> CREATE file /d/one/new/x

links that lead in a circle
    symlink  b /d/a
    symlink  a /d/b
    watch    /d/a recursive create -> ELOOP /d/a
    repoint  /e /d/b     -> CREATE directory /d/a
    mkdir    /e/new      -> CREATE directory /d/a/new
    touch    /e/new/x    -> CREATE file /d/a/new/x

a directory that becomes a link while its tree is watched
    makedirs /d/t/s
    watch    /d/t recursive create
    rename   /d/t/s /e/s ; symlink /e/s /d/t/s -> CREATE file /d/t/s
    mkdir    /e/s/new    ->

a fifo and a device are watched without being opened
    mkfifo   /d/fifo
    watch    /d/fifo attrib
    chmod    600 /d/fifo -> ATTRIB file /d/fifo
    watch    /d recursive create
    mkfifo   /d/other    -> CREATE file /d/other
"""

HOME_STORIES: Final = parse(test_paths.LINKS)
"""What a process of our own mount namespace is tried with: it is only its root that is entered."""


@pytest.mark.parametrize("story", parse(INSIDE), ids=lambda story: story.title.replace(" ", "_"))
def test_story(stage: Stage, story: Story) -> None:
    stage.play(story)


@pytest.fixture
def stage_at_home(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path, Way.SETNS_AT_HOME)
    yield stage
    stage.close()


@pytest.mark.parametrize("story", [*parse(INSIDE), *HOME_STORIES], ids=lambda story: story.title.replace(" ", "_"))
def test_story_of_a_process_in_our_own_mount_namespace(stage_at_home: Stage, story: Story) -> None:
    stage_at_home.play(story)


# ---- nothing leads out


LOOKOUT: Final = """
import select, sys
tables, forbidden = sys.argv[1].split(), sys.argv[2].split()
rounds, seen, watched = 0, set(), 0
while not rounds or not select.select([sys.stdin], [], [], 0)[0]:
    for table in tables:
        text = open(table).read()
        watched = max(watched, text.count("inotify wd:"))
        seen.update(words for words in forbidden if words.replace(",", " ") in text)
    rounds += 1
    if rounds == 1:
        print("looking", flush=True)
print(rounds, watched, *seen)
"""


@contextlib.contextmanager
def lookout(secret: Path) -> Iterator[None]:
    """See to it that nothing of ``secret`` is watched in the meantime, be it only until that is found to be wrong.

    A process of its own reads the kernel's list of this process' watches as fast as it can.
    """
    tables = [
        f"/proc/{os.getpid()}/fdinfo/{descriptor.name}"
        for descriptor in Path("/proc/self/fd").iterdir()
        if os.path.lexists(descriptor) and str(descriptor.readlink()) == "anon_inode:inotify"
    ]
    assert tables
    forbidden = [in_fdinfo(place) for place in (secret, *secret.rglob("*"))]
    command = [sys.executable, "-c", LOOKOUT, " ".join(tables), " ".join(forbidden)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "looking\n"
        try:
            yield
        finally:
            told, _ = process.communicate(timeout=TIMEOUT_S)
    rounds, watched, *seen = told.split()
    assert int(rounds) > 1
    assert int(watched) > 1, "the engine's watches were not seen"
    assert not seen


def in_fdinfo(path: Path) -> str:
    """Return how the list of watches names a file, with a comma for the blank."""
    status = path.stat()
    return f"ino:{status.st_ino:x},sdev:{os.major(status.st_dev) << 20 | os.minor(status.st_dev):x},"


def attack(stage: Stage, secret: Path, paths: Sequence[bytes], swap: Callable[[], None]) -> None:
    """Watch ``paths`` again and again while a traitor swaps; ``secret``, outside, is never watched."""
    with lookout(secret), Background(swap) as traitor:
        rounds = 0
        while traitor.is_at_work and (rounds < ROUNDS // 10 or traitor.rounds < ROUNDS):
            # For OPEN the tree's top is opened again by its path in the end.
            stage.watching.watch("attacked", paths, EVENTS["CREATE"] | EVENTS["OPEN"], recursive=True)
            stage.watching.unwatch("attacked")
            rounds += 1
    assert traitor.rounds >= ROUNDS


def test_a_component_that_is_swapped_with_a_link_does_not_lead_out(stage: Stage, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    (secret / "data/sub").mkdir(parents=True)
    (stage.world.root / "d/data/sub").mkdir(parents=True)
    (stage.world.root / "link").symlink_to(f"../../../../../../../../../..{secret}")

    def swap() -> None:
        exchange(stage.world.root / "d", stage.world.root / "link")

    attack(stage, secret, [b"/d/data", b"/d/data/sub", b"/link/data"], swap)


@pytest.mark.parametrize("way", [Way.OPENAT2, Way.SETNS_AT_HOME], ids=lambda way: way.value)
def test_a_directory_that_is_moved_out_on_the_way_up_does_not_lead_out(tmp_path: Path, way: Way) -> None:
    """What openat2(2) answers EAGAIN to: ``..`` of a directory that was moved out of the root at that moment."""
    stage = Stage(tmp_path, way)
    outside = tmp_path / "outside"
    (outside / "secret/data").mkdir(parents=True)
    (stage.world.root / "d/secret").mkdir()
    (stage.world.root / "d/a/b/c").mkdir(parents=True)
    (stage.world.root / "up").symlink_to("d/a/b/c/../../../secret")

    def swap() -> None:
        (stage.world.root / "d/a").rename(outside / "a")
        (outside / "a").rename(stage.world.root / "d/a")

    with contextlib.closing(stage):
        attack(stage, outside / "secret", [b"/up", b"/d/a/b/c/../../../secret"], swap)


@pytest.fixture
def with_proc(stage: Stage) -> Iterator[Stage]:
    """The container has the host's procfs, as one with hostPID has."""
    proc = stage.world.root / "proc"
    proc.mkdir()
    assert _libc.mount(b"proc", os.fsencode(proc), b"proc", 0, None) == 0
    yield stage
    assert _libc.umount2(os.fsencode(proc), 0) == 0, "procfs is kept busy"


def test_links_of_procfs_do_not_lead_out(with_proc: Stage, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    (secret / "data").mkdir(parents=True)
    held = os.open(secret / "data", os.O_PATH)
    process = f"/proc/{os.getpid()}"
    paths = [f"{process}/root{secret}", f"{process}/cwd/{secret}", f"{process}/fd/{held}", f"/proc/1/root{secret}/data"]
    with lookout(secret):
        errors = with_proc.watching.watch("-", [path.encode() for path in paths], EVENTS["CREATE"], recursive=True)
        assert all(errors)
        (secret / "data/new").mkdir()
        assert with_proc.watching.lines() == []
    os.close(held)
    with_proc.watching.unwatch("-")


def test_links_of_procfs_do_not_lead_out_where_the_container_has_such_a_path(with_proc: Stage, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    (secret / "data").mkdir(parents=True)
    own = with_proc.world.path(str(secret))
    (own / "data").mkdir(parents=True)
    paths = [
        f"/proc/{os.getpid()}/root{secret}".encode(),
        f"/proc/{os.getpid()}/cwd/../../../../../{secret}/data".encode(),
    ]
    with lookout(secret):
        for number in range(100):
            with_proc.watching.watch("-", paths, EVENTS["CREATE"] | EVENTS["OPEN"], recursive=True)
            (own / f"data/{number}").mkdir()
            (own / f"data/{number}/new").mkdir()
            with_proc.watching.lines()
            with_proc.watching.unwatch("-")
            (own / f"data/{number}/new").rmdir()
            (own / f"data/{number}").rmdir()


# ---- nothing stays open


def entered() -> list[str]:
    """What of this process is not where it was at the start: threads' roots, folders and namespaces, descriptors."""
    home = {name: Path(f"/proc/self/{name}").readlink() for name in ("root", "cwd", "ns/mnt")}
    found = []
    for task in Path("/proc/self/task").iterdir():
        try:
            found += [f"{task.name} {name}" for name, at in home.items() if (task / name).readlink() != at]
        except FileNotFoundError:
            continue  # the thread has ended
    return found


def test_nothing_of_a_container_stays_open(stage: Stage) -> None:
    for name in ("a/b/c", "a/d", "e"):
        (stage.world.root / "d" / name).mkdir(parents=True)
    before = descriptors()

    def outside() -> bool:
        """The walker thread may just look whether mounts have come."""
        return not entered() and {*descriptors()} <= {*before, "anon_inode:[pidfd]"}

    assert stage.watching.watch("-", [b"/d", b"/missing", b"/e"], EVENTS["CREATE"], recursive=True) == (0, 2, 0)
    until(outside, "nothing of the container is open after the walk")
    (stage.world.root / "d/a/new/er").mkdir(parents=True)
    assert stage.watching.lines()
    until(outside, "nothing of the container is open after new directories")


@pytest.mark.parametrize("way", [Way.OPENAT2, Way.SETNS], ids=lambda way: way.value)
def test_the_root_of_a_killed_container_can_be_unmounted_at_once(tmp_path: Path, way: Way) -> None:
    (tmp_path / "sentinels").mkdir()
    root = tmp_path / "root"
    root.mkdir()
    assert _libc.mount(b"rootfs", os.fsencode(root), b"tmpfs", 0, b"size=1m") == 0
    try:
        (root / "d/a/b").mkdir(parents=True)
        container = Container(root, own_mounts=way.own_mounts)
        with Watching(tmp_path / "sentinels", container.pid, container.pidfd, way.enter) as watching:
            watching.watch("-", [b"/d"], EVENTS["CREATE"], recursive=True)
            (root / "d/a/b/c").mkdir()
            assert watching.lines() == ["-: CREATE directory /d/a/b/c"]
            container.end()
            container.unmount()
            assert _libc.umount2(os.fsencode(root), 0) == 0, os.strerror(ctypes.get_errno())
            container.close()
    finally:
        _libc.umount2(os.fsencode(root), MNT_DETACH)


# ---- nothing is loaded

LIBRARIES: Final = ("libgcc_s.so.1", "libnss_files.so.2", "libc.so.6", "libpthread.so.0", "libm.so.6", "libdl.so.2")
FOLDERS: Final = ("lib", "lib64", "usr/lib", "usr/lib64", "lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "d")
OTHERS: Final = (
    "etc/ld.so.cache",
    "etc/ld.so.preload",
    "etc/nsswitch.conf",
    "etc/passwd",
    "etc/localtime",
    "etc/gai.conf",
    "usr/lib/locale/locale-archive",
    "usr/lib/x86_64-linux-gnu/gconv/gconv-modules",
    "usr/share/locale/locale.alias",
    "proc/self/maps",
    "proc/cpuinfo",
    "proc/sys/vm/overcommit_memory",
    "sys/devices/system/cpu/online",
)
"""What glibc is known to open behind one's back."""


def plant(root: Path) -> list[Path]:
    """Put there whatever a program might look for. Fifos, so that opening one would not be survived either."""
    planted = [root / folder / library for folder in FOLDERS for library in LIBRARIES]
    planted += [root / name for name in OTHERS]
    for path in planted:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(path)
    return planted


def test_nothing_that_is_planted_in_a_container_is_opened(stage: Stage, tmp_path: Path) -> None:
    planted = plant(stage.world.root)
    (tmp_path / "canaries").mkdir()
    pidfd = os.pidfd_open(os.getpid())
    with Watching(tmp_path / "canaries", os.getpid(), pidfd) as canaries:
        paths = [os.fsencode(path) for path in planted]
        assert not any(canaries.watch("canary", paths, EVENTS["OPEN"] | EVENTS["ACCESS"]))
        for number in range(10):
            # A tree of some megabytes of names: what is allocated for it is given back to the system afterwards.
            for name in range(200):
                (stage.world.root / f"d/{number}/{name:0250}").mkdir(parents=True)
            stage.watching.watch("-", [b"/d", b"/lib/libgcc_s.so.1", b"/e/missing"], EVENTS["CREATE"], recursive=True)
            (stage.world.root / f"d/{number}/new/er").mkdir(parents=True)
            assert stage.watching.lines()
            stage.watching.unwatch("-")
        assert canaries.lines() == []
        os.close(os.open(planted[0], os.O_RDONLY | os.O_NONBLOCK))
        assert canaries.lines() == [f"canary: OPEN file {planted[0]}"]
    os.close(pidfd)


# ---- the choice


def test_a_way_that_does_not_exist_is_refused() -> None:
    output = Output()
    with pytest.raises(ValueError, match="elevator"):
        Engine(output, "elevator")
    assert output.close()


@pytest.mark.parametrize(("wanted", "got"), [("auto", "openat2"), ("openat2", "openat2"), ("setns", "setns")])
def test_an_engine_tells_its_way(wanted: str, got: str) -> None:
    output = Output()
    engine = Engine(output, wanted)
    assert engine.enter == got
    engine.close()
    assert output.close()
