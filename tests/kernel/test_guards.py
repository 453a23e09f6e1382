"""What no single story shows: several containers, mounts, limits, refusals, and what guards leave behind."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import pytest

from argusd._fanotify import EVENTS, GuardError
from tests.kernel.container import Container, Way
from tests.kernel.guarding import Guarding
from tests.kernel.opening import Process
from tests.kernel.silent_fuse import SilentFileSystem
from tests.kernel.volume import Volume
from tests.waiting import until

MS_BIND: Final = 0x1000
MNT_DETACH: Final = 2
FAN_CLASS_PRE_CONTENT: Final = 8
FAN_MARK_ADD: Final = 1
AT_FDCWD: Final = -100
CLOCK_REALTIME_COARSE: Final = 5
UPDATES: Final = 300
CYCLES: Final = 300
RENAMES: Final = 300

_libc: Final = ctypes.CDLL(None, use_errno=True)


class Sandbox:
    """A folder, guards, and processes of the host that open things in it."""

    def __init__(self, folder: Path) -> None:
        (folder / "apart").mkdir()
        (folder / "apart/sentinel").write_text("-")
        self.folder = folder / "guarded"
        self.folder.mkdir()
        self.file = self.folder / "f"
        self.file.write_text("-")
        self.opener = Process()
        self.other = Process()
        self.mounted: list[Path] = []
        self.guarding = Guarding(folder / "apart/sentinel")

    def deny(self, *paths: Path, label: str = "-", mask: int = EVENTS["OPEN_PERM"], pid: int = 0) -> None:
        """Deny paths that are there to everybody."""
        errors = self.guarding.guard(label, pid or os.getpid(), deny=map(os.fsencode, paths), mask=mask)
        assert set(errors) == {0}

    def opens(self, path: Path) -> bool:
        """Whether it can be opened; nothing but the guard is in the way."""
        answer = self.opener.do("open", path)
        assert answer in {"", "EPERM"}
        return not answer

    def bind(self, source: Path, target: Path) -> None:
        """Mount one on the other."""
        if _libc.mount(os.fsencode(source), os.fsencode(target), None, MS_BIND, None) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self.mounted.append(target)

    def unmount(self, target: Path) -> None:
        """Undo that."""
        assert _libc.umount2(os.fsencode(target), MNT_DETACH) == 0
        self.mounted.remove(target)

    def close(self) -> None:
        """End everything."""
        self.guarding.close()
        self.opener.close()
        self.other.close()
        for target in reversed(self.mounted):
            _libc.umount2(os.fsencode(target), MNT_DETACH)


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    sandbox = Sandbox(tmp_path)
    yield sandbox
    sandbox.close()


def descriptors() -> int:
    """How many this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))


class Unanswered:
    """Another listener, which is asked first and never answers: see fanotify(7)."""

    def __init__(self, path: Path) -> None:
        self._group = _libc.fanotify_init(FAN_CLASS_PRE_CONTENT, os.O_RDONLY)
        assert self._group >= 0
        mask = ctypes.c_uint64(EVENTS["OPEN_PERM"])
        assert _libc.fanotify_mark(self._group, FAN_MARK_ADD, mask, AT_FDCWD, os.fsencode(path)) == 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._group)


def tick() -> None:
    """Wait until files that are made have another time of birth than those before."""
    before = time.clock_gettime(CLOCK_REALTIME_COARSE)
    until(lambda: time.clock_gettime(CLOCK_REALTIME_COARSE) > before, "the clock of file times ticks")


def marks() -> int:
    """How many files and directories its permission groups have marked: see proc_pid_fdinfo(5)."""
    infos = [path.read_text() for path in Path("/proc/self/fdinfo").iterdir() if path.exists()]
    return sum(info.count("fanotify ino:") for info in infos)


def test_container_that_shares_a_volume_is_refused_too(tmp_path: Path) -> None:
    for name in ("one/data", "two/shared"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "sentinel").write_text("-")
    (tmp_path / "one/data/f").write_text("-")
    one = Container(tmp_path / "one", own_mounts=True)
    two = Container(tmp_path / "two", own_mounts=True)
    source, target = os.fsencode(tmp_path / "one/data"), os.fsencode(tmp_path / "two/shared")
    assert _libc.mount(source, target, None, MS_BIND, None) == 0
    inside = Process(two)
    guarding = Guarding(tmp_path / "sentinel")
    try:
        guarding.guard("one", one.pid, deny=[b"/data"])
        guarding.guard("two", two.pid, allow=[b"/shared/f"])
        assert inside.do("open", "/shared/f") == "EPERM"
        assert set(guarding.lines()) == {"one: DENY OPEN_PERM file /data/f", "two: DENY OPEN_PERM file /shared/f"}
        guarding.unguard("one")
        assert inside.do("open", "/shared/f") == ""
        assert guarding.lines() == ["two: ALLOW OPEN_PERM file /shared/f"]
    finally:
        guarding.close()
        inside.close()
        _libc.umount2(target, MNT_DETACH)
        for container in (one, two):
            container.close()


def test_same_name_elsewhere_is_not_taken_for_the_guarded_one(sandbox: Sandbox) -> None:
    sandbox.deny(sandbox.file)
    other = sandbox.folder / "other"
    other.mkdir()
    (other / "f").write_text("-")
    assert sandbox.opens(other / "f")
    assert not sandbox.opens(sandbox.file)


def test_file_that_is_mounted_in_a_guarded_directory_is_guarded(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("-")
    sandbox.bind(tmp_path / "hosts", sandbox.file)
    sandbox.deny(sandbox.folder)
    assert not sandbox.opens(sandbox.file)
    assert sandbox.guarding.lines() == [f"-: DENY OPEN_PERM file {sandbox.file}"]


def test_directory_that_is_mounted_in_a_guarded_directory_is_guarded_without_what_is_in_it(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume/f").write_text("-")
    (sandbox.folder / "volume").mkdir()
    sandbox.bind(tmp_path / "volume", sandbox.folder / "volume")
    sandbox.deny(sandbox.folder)
    assert sandbox.opener.do("list", sandbox.folder / "volume") == "EPERM"
    assert sandbox.guarding.lines() == [f"-: DENY OPEN_PERM directory {sandbox.folder / 'volume'}"]
    assert sandbox.opens(sandbox.folder / "volume/f")


def test_what_is_mounted_later_is_guarded_soon(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("-")
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume/f").write_text("-")
    sandbox.deny(sandbox.folder)
    sandbox.bind(tmp_path / "hosts", sandbox.file)
    until(lambda: not sandbox.opens(sandbox.file), "the mounted file is guarded")
    sandbox.unmount(sandbox.file)
    sandbox.bind(tmp_path / "volume", sandbox.folder)
    until(lambda: not sandbox.opens(sandbox.folder / "f"), "the directory mounted on the guarded one is guarded")


def test_what_is_in_a_denied_directory_is_denied_where_it_is_mounted(sandbox: Sandbox, tmp_path: Path) -> None:
    (sandbox.folder / "sub").mkdir()
    (tmp_path / "file").write_text("-")
    (tmp_path / "directory").mkdir()
    sandbox.deny(sandbox.folder)
    sandbox.bind(sandbox.file, tmp_path / "file")
    sandbox.bind(sandbox.folder / "sub", tmp_path / "directory")
    assert not sandbox.opens(tmp_path / "file")
    assert sandbox.opener.do("list", tmp_path / "directory") == "EPERM"


def test_what_is_mounted_and_was_guarded_is_free(sandbox: Sandbox, tmp_path: Path) -> None:
    """By what directory it is asked for nobody says, but it has a mark of its own."""
    (tmp_path / "hosts").write_text("-")
    (tmp_path / "place").write_text("-")
    sandbox.bind(tmp_path / "hosts", tmp_path / "place")
    sandbox.deny(sandbox.folder, label="directory")
    sandbox.deny(tmp_path / "place", label="mounted")
    assert not sandbox.opens(tmp_path / "place")
    sandbox.guarding.unguard("mounted")
    assert sandbox.opens(tmp_path / "place")


@pytest.mark.parametrize("own_mounts", [False, True])
def test_root_of_a_container_is_free_beside_what_is_denied(tmp_path: Path, *, own_mounts: bool) -> None:
    """The name of a root is not to be found in any directory, and a root that is mounted has none."""
    root = tmp_path / "apart/root"
    (root / "d").mkdir(parents=True)
    (tmp_path / "sentinel").write_text("-")
    container = Container(root, own_mounts=own_mounts)
    inside = Process(container)
    guarding = Guarding(tmp_path / "sentinel")
    try:
        guarding.guard("-", container.pid, deny=[b"/d", b"/missing"])
        assert inside.do("list", "/") == ""
        assert inside.do("list", "/d") == "EPERM"
        assert guarding.lines() == ["-: DENY OPEN_PERM directory /d"]
    finally:
        guarding.close()
        inside.close()
        container.close()


def test_file_without_a_name_is_free_beside_a_guarded_one(sandbox: Sandbox, tmp_path: Path) -> None:
    """Also where its directory is mounted elsewhere: in which one it is can be found out, but not by its name."""
    for name in ("denied", "place"):
        (tmp_path / name).mkdir()
    sandbox.bind(sandbox.folder, tmp_path / "place")
    sandbox.deny(sandbox.file, tmp_path / "denied")
    assert sandbox.opener.do("open_unnamed", sandbox.folder) == ""
    assert sandbox.opener.do("open_unnamed", tmp_path / "place") == ""
    assert sandbox.opener.do("open_unnamed", tmp_path / "denied") == "EPERM"


def test_what_the_kernel_denies_for_lack_of_descriptors_is_told(sandbox: Sandbox) -> None:
    sandbox.deny(sandbox.folder / "f")
    (sandbox.folder / "free").write_text("-")
    assert sandbox.opens(sandbox.folder / "free")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        denied = not sandbox.opens(sandbox.folder / "free")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert denied
    until(lambda: sandbox.guarding.guards.notices() == [("failed", 1)], "it is told")
    assert sandbox.opens(sandbox.folder / "free")


def test_answers_do_not_depend_on_the_descriptors_of_the_rest(sandbox: Sandbox) -> None:
    """Whatever clients make the daemon open, there is a descriptor for the next event."""
    sandbox.deny(sandbox.file)
    (sandbox.folder / "free").write_text("-")
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = max(int(link.name) for link in Path("/proc/self/fd").iterdir()) + 8
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, limit[1]))
    held: list[int] = []
    try:
        with contextlib.suppress(OSError):
            held.extend(os.dup(0) for _ in range(most))
        assert len(held) < most
        assert sandbox.opens(sandbox.folder / "free")
        assert not sandbox.opens(sandbox.file)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        for descriptor in held:
            os.close(descriptor)


def test_only_the_threads_that_serve_a_group_hold_it(sandbox: Sandbox) -> None:
    """Any other thread may have to wait for a file system, and would keep the group from being closed at the end."""
    sandbox.deny(sandbox.file)
    holders = {
        (task / "comm").read_text().strip()
        for task in Path("/proc/self/task").iterdir()
        if any(
            link.is_symlink() and link.readlink().name == "anon_inode:[fanotify]" for link in (task / "fd").iterdir()
        )
    }
    assert holders == {"responder", "marker"}


def test_files_of_procfs_are_refused_with_the_reason(sandbox: Sandbox) -> None:
    with pytest.raises(GuardError) as caught:
        sandbox.deny(Path("/proc/self/status"))
    assert (caught.value.step, caught.value.errno, caught.value.filename) == ("mark", errno.EINVAL, "/proc/self/status")
    assert sandbox.guarding.guards.statistics()["strays"] == 0


def test_guard_of_which_one_path_is_refused_guards_nothing(sandbox: Sandbox) -> None:
    with pytest.raises(GuardError):
        sandbox.deny(sandbox.file, Path("/proc/self/status"))
    assert sandbox.opens(sandbox.file)
    assert sandbox.guarding.lines() == []


def test_update_leaves_no_moment_without_the_guard(sandbox: Sandbox) -> None:
    sandbox.deny(sandbox.file, label="0")
    stop = threading.Event()
    opened: list[int] = []
    refused: list[int] = []

    def hammer() -> None:
        while not stop.is_set():
            (refused if sandbox.other.do("open", sandbox.file) else opened).append(1)

    thread = threading.Thread(target=hammer)
    thread.start()
    for number in range(1, UPDATES):
        new = sandbox.guarding.prepare(str(number), os.getpid(), deny=[os.fsencode(sandbox.file)])
        sandbox.guarding.engine.arm(new)
        sandbox.guarding.replace(str(number - 1), str(number), new)
    stop.set()
    thread.join()
    assert not opened
    lines = sandbox.guarding.lines()
    assert len(lines) == len(refused), "each answer is told once"


def test_replacing_by_rename_leaves_no_moment_without_the_guard(sandbox: Sandbox) -> None:
    """As editors and package managers save, many times, while others try to get in."""
    sandbox.deny(sandbox.file)
    stop = threading.Event()
    opened: list[int] = []
    refused: list[int] = []

    def hammer() -> None:
        while not stop.is_set():
            (refused if sandbox.other.do("open", sandbox.file) else opened).append(1)

    thread = threading.Thread(target=hammer)
    thread.start()
    for number in range(RENAMES):
        fresh = sandbox.folder / f"new{number}"
        fresh.write_text("-")
        fresh.rename(sandbox.file)
    stop.set()
    thread.join()
    assert not opened
    assert len(sandbox.guarding.lines()) == len(refused)


def test_guards_leave_no_descriptor_and_no_mark(sandbox: Sandbox) -> None:
    before, before_marks = descriptors(), marks()
    for _ in range(CYCLES):
        sandbox.deny(sandbox.file, sandbox.folder)
        sandbox.guarding.unguard("-")
    sandbox.guarding.settle()
    until(lambda: sandbox.guarding.guards.statistics()["guards"] == 2, "ended guards are freed")  # the sentinels
    assert descriptors() == before
    answered = sandbox.guarding.guards.statistics()["lines"]
    until(
        lambda: sandbox.opens(sandbox.file) and not sandbox.opener.do("list", sandbox.folder)
        and marks() == before_marks,
        "the marks of what is opened go",
    )  # fmt: skip
    assert sandbox.guarding.guards.statistics()["lines"] == answered


def test_mark_of_a_file_that_was_moved_is_taken_away_when_it_is_opened(sandbox: Sandbox) -> None:
    sandbox.deny(sandbox.file)
    sandbox.file.rename(sandbox.folder.with_name("old"))
    sandbox.guarding.settle()
    assert sandbox.guarding.guards.statistics()["strays"] == 1
    until(
        lambda: sandbox.opens(sandbox.folder.with_name("old")) and sandbox.guarding.guards.statistics()["strays"] == 0,
        "the mark of the file that was moved away goes",
    )


def test_mark_of_a_directory_is_taken_away_when_something_in_it_is_opened(sandbox: Sandbox, tmp_path: Path) -> None:
    container = Container(tmp_path)
    path = "/" + str(sandbox.folder.relative_to(tmp_path))
    sandbox.guarding.guard("c", container.pid, deny=[path.encode()])
    assert not sandbox.opens(sandbox.file)
    container.end()
    sandbox.guarding.unguard("c")
    until(
        lambda: sandbox.opens(sandbox.file) and sandbox.guarding.guards.statistics()["strays"] == 0,
        "the mark of the directory goes",
    )
    container.close()


def test_files_of_an_atomic_volume_are_guarded_with_its_directory(sandbox: Sandbox) -> None:
    volume = Volume(sandbox.folder / "config")
    volume.update({"one": b"1", "two": b"2"})
    sandbox.deny(sandbox.folder / "config")
    for version in (b"3", b"4"):
        assert not sandbox.opens(sandbox.folder / "config/one")
        assert sandbox.guarding.lines() == [f"-: DENY OPEN_PERM file {sandbox.folder}/config/one"]
        volume.update({"one": version, "new": version})
        sandbox.guarding.settle()
    assert not sandbox.opens(sandbox.folder / "config/new")


def test_volume_that_leads_elsewhere_is_not_followed(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/f").write_text("-")
    (sandbox.folder / "..data").symlink_to(tmp_path / "elsewhere")
    sandbox.deny(sandbox.folder)
    assert sandbox.opens(tmp_path / "elsewhere/f")


def test_container_that_ends_leaves_its_volume_open(tmp_path: Path, sandbox: Sandbox) -> None:
    container = Container(tmp_path)
    path = "/" + str(sandbox.file.relative_to(tmp_path))
    sandbox.guarding.guard("c", container.pid, deny=[path.encode()])
    assert not sandbox.opens(sandbox.file)
    container.end()
    sandbox.guarding.unguard("c")
    assert sandbox.opens(sandbox.file)
    container.close()


def test_file_system_of_a_user_is_refused(sandbox: Sandbox) -> None:
    """Waiting for its server, the daemon could neither answer others nor be killed."""
    place = sandbox.folder / "silent"
    place.mkdir()
    try:
        silent = SilentFileSystem(place)
    except OSError as error:
        pytest.skip(f"no FUSE on this machine: {error}")
    with silent:
        with pytest.raises(GuardError) as caught:
            sandbox.deny(place / "f")
        assert (caught.value.step, caught.value.errno) == ("mark", errno.EOPNOTSUPP)
        sandbox.deny(sandbox.file)
        assert not sandbox.opens(sandbox.file)
    place.rmdir()
    sandbox.file.unlink()
    sandbox.file.symlink_to(place / "f")
    place.mkdir()
    with SilentFileSystem(place):
        until(lambda: any(notice.kind == "unguarded" for notice in sandbox.guarding.engine.notices()), "it is told")


def test_overlay_that_is_not_the_containers_root_is_refused(sandbox: Sandbox, tmp_path: Path) -> None:
    """Whoever can mount may have put it on a file system of his own."""
    place = sandbox.folder / "overlay"
    for folder in (place, tmp_path / "lower", tmp_path / "upper", tmp_path / "work"):
        folder.mkdir()
    (tmp_path / "lower/f").write_text("-")
    layers = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work".encode()
    if _libc.mount(b"overlay", os.fsencode(place), b"overlay", 0, layers) != 0:
        pytest.skip(f"no overlay on this file system: {os.strerror(ctypes.get_errno())}")
    sandbox.mounted.append(place)
    with pytest.raises(GuardError) as caught:
        sandbox.deny(place / "f")
    assert (caught.value.step, caught.value.errno) == ("mark", errno.EOPNOTSUPP)
    container = Container(place, own_mounts=True)
    sandbox.guarding.guard("root", container.pid, deny=[b"/f"])
    assert not sandbox.opens(place / "f")
    container.close()


def test_what_makes_no_events_is_refused(sandbox: Sandbox) -> None:
    """A guard of it would guard nothing: nobody is asked before a device, a pipe or a socket is opened."""
    places = [sandbox.folder / name for name in ("pipe", "device", "socket")]
    os.mkfifo(places[0])
    os.mknod(places[1], stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fsencode(places[2]))
        for place in places:
            with pytest.raises(GuardError) as caught:
                sandbox.deny(place)
            assert (caught.value.step, caught.value.errno, caught.value.filename) == ("kind", errno.ENXIO, str(place))


def test_file_that_becomes_a_pipe_is_told_of_and_its_successor_guarded(sandbox: Sandbox) -> None:
    sandbox.deny(sandbox.file)
    sandbox.file.unlink()
    os.mkfifo(sandbox.file)
    until(lambda: any(notice.errno == errno.ENXIO for notice in sandbox.guarding.engine.notices()), "it is told")
    (sandbox.folder / "new").write_text("-")
    (sandbox.folder / "new").rename(sandbox.file)
    assert not sandbox.opens(sandbox.file)


class View:
    """A container that sees a folder of the node read-only at ``/host``."""

    def __init__(self, sandbox: Sandbox, folder: Path) -> None:
        self.sandbox = sandbox
        self.node = folder / "node"
        self.root = folder / "root"
        for place in (self.node, self.root / "host", self.root / "data"):
            place.mkdir(parents=True)
        (self.node / "library").write_text("-")
        self.container = Container(self.root, own_mounts=True)
        sandbox.bind(self.node, self.root / "host")
        with Process(self.container) as process:
            assert process.do("make_read_only", "/host") == ""

    def point(self, target: str) -> None:
        """Point the guarded path somewhere else."""
        link = self.root / "data/new"
        link.symlink_to(target)
        link.rename(self.root / "data/secret")
        self.sandbox.guarding.settle()

    def close(self) -> None:
        self.container.close()


@pytest.fixture
def view(sandbox: Sandbox, tmp_path: Path) -> Iterator[View]:
    view = View(sandbox, tmp_path / "view")
    yield view
    view.close()


def test_link_into_a_read_only_view_of_the_node_guards_nothing(view: View, sandbox: Sandbox) -> None:
    """The container could else have the node refused its own files. It is told of once."""
    (view.root / "data/secret").write_text("-")
    sandbox.guarding.guard("-", view.container.pid, deny=[b"/data/secret"])
    assert not sandbox.opens(view.root / "data/secret")
    told = []
    for target in ("/host/library", "/host", "/host/missing", "/host/library"):
        view.point(target)
        told += [notice.kind for notice in sandbox.guarding.engine.notices()]
        assert sandbox.opens(view.node / "library")
        assert sandbox.opener.do("list", view.node) == ""
    assert told == ["foreign"]
    (view.root / "data/own").write_text("-")
    view.point("/data/own")
    assert not sandbox.opens(view.root / "data/own")


def test_first_look_at_such_a_link_guards_nothing_either(view: View, sandbox: Sandbox) -> None:
    view.point("/host/library")
    sandbox.guarding.guard("-", view.container.pid, deny=[b"/data/secret"])
    assert sandbox.opens(view.node / "library")
    assert [notice.kind for notice in sandbox.guarding.engine.notices()] == ["foreign"]


def test_path_that_names_a_view_of_the_node_is_guarded(view: View, sandbox: Sandbox) -> None:
    sandbox.guarding.guard("-", view.container.pid, deny=[b"/host/library"])
    assert not sandbox.opens(view.node / "library")
    assert sandbox.guarding.engine.notices() == []


def test_root_over_a_file_system_of_a_user_is_refused(sandbox: Sandbox, tmp_path: Path) -> None:
    """Images that are pulled lazily are such: an open of theirs may wait for ever, and cannot be killed."""
    root, lower = sandbox.folder / "overlay", tmp_path / "lower"
    for folder in (root, lower, tmp_path / "upper", tmp_path / "work"):
        folder.mkdir()
    try:
        silent = SilentFileSystem(lower)
    except OSError as error:
        pytest.skip(f"no FUSE on this machine: {error}")
    with silent:
        layers = f"lowerdir={lower},upperdir={tmp_path}/upper,workdir={tmp_path}/work".encode()
        if _libc.mount(b"overlay", os.fsencode(root), b"overlay", 0, layers) != 0:
            pytest.skip(f"no overlay on this file system: {os.strerror(ctypes.get_errno())}")
        sandbox.mounted.append(root)
        container = Container(root)
        with pytest.raises(GuardError) as caught:
            sandbox.guarding.guard("-", container.pid, deny=[b"/f"])
        assert (caught.value.step, caught.value.errno) == ("mark", errno.EOPNOTSUPP)
        container.close()
        sandbox.unmount(root)


def test_mount_that_cannot_be_guarded_leaves_what_was_guarded(sandbox: Sandbox, tmp_path: Path) -> None:
    """In a root that is an overlay, whoever may mount could else free a file by mounting it on itself."""
    root = sandbox.folder / "overlay"
    for folder in (root, tmp_path / "lower/d", tmp_path / "upper", tmp_path / "work"):
        folder.mkdir(parents=True)
    (tmp_path / "lower/d/f").write_text("-")
    layers = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work".encode()
    if _libc.mount(b"overlay", os.fsencode(root), b"overlay", 0, layers) != 0:
        pytest.skip(f"no overlay on this file system: {os.strerror(ctypes.get_errno())}")
    sandbox.mounted.append(root)
    container = Container(root)
    sandbox.guarding.guard("-", container.pid, deny=[b"/d/f"])
    sandbox.bind(root / "d", root / "d")
    until(lambda: any(notice.kind == "unguarded" for notice in sandbox.guarding.engine.notices()), "it is told")
    sandbox.guarding.settle()
    assert not sandbox.opens(root / "d/f")
    container.close()


def test_check_that_somebody_else_holds_up_is_an_error(sandbox: Sandbox) -> None:
    with Unanswered(sandbox.file), pytest.raises(GuardError) as caught:
        sandbox.deny(sandbox.file)
    assert (caught.value.step, caught.value.errno) == ("check", errno.ETIMEDOUT)
    sandbox.deny(sandbox.file)
    assert not sandbox.opens(sandbox.file)


def test_new_file_with_the_number_of_a_guarded_one_is_free(sandbox: Sandbox) -> None:
    """File systems give the number of a deleted file to the next one, which is born later."""
    sandbox.deny(sandbox.file)
    for number in range(RENAMES):
        fresh = sandbox.folder / f"new{number}"
        tick()
        assert sandbox.opener.do("open_to_create", fresh) == ""
        fresh.rename(sandbox.file)
    assert not sandbox.opens(sandbox.file)


def test_ending_guard_of_a_file_leaves_its_directory_guarded(sandbox: Sandbox) -> None:
    """The kernel lets opens through while a mark is taken away and somebody waits for an answer about its file."""
    sandbox.deny(sandbox.folder, label="directory")
    stop = threading.Event()
    answers: list[str] = []
    processes = [sandbox.opener, sandbox.other]

    def hammer(process: Process) -> None:
        while not stop.is_set():
            answers.append(process.do("open", sandbox.file))

    threads = [threading.Thread(target=hammer, args=[process]) for process in processes]
    for thread in threads:
        thread.start()
    for _ in range(UPDATES):
        sandbox.deny(sandbox.file, label="file")
        sandbox.guarding.unguard("file")
    stop.set()
    for thread in threads:
        thread.join()
    assert set(answers) == {"EPERM"}
    assert sandbox.guarding.lines()


def test_link_to_what_cannot_be_guarded_is_told_and_frees_what_was(sandbox: Sandbox) -> None:
    sandbox.deny(sandbox.file)
    sandbox.file.unlink()
    sandbox.file.symlink_to("/proc/version")
    notices: list[str] = []

    def told() -> bool:
        notices.extend(notice.kind for notice in sandbox.guarding.engine.notices())
        return bool(notices)

    until(told, "it is told")
    sandbox.guarding.settle()
    assert sandbox.opens(Path("/proc/version"))
    assert notices == ["unguarded"]


def test_both_ways_leave_the_containers_mounts_alone(tmp_path: Path) -> None:
    for way in (Way.OPENAT2, Way.SETNS):
        root = tmp_path / way.value
        root.mkdir()
        (root / "f").write_text("-")
        (root / "sentinel").write_text("-")
        container = Container(root, own_mounts=True)
        guarding = Guarding(root / "sentinel", way.enter)
        try:
            guarding.guard("-", container.pid, deny=[b"/f"])
            container.end()
            guarding.settle()
            container.unmount()  # EBUSY if anything of it was still held
        finally:
            guarding.close()
            container.close()
