"""Which process stands for a container, with real processes in real cgroups and pid namespaces."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import select
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from argusd.containers import AmbiguousId, Container, find, open_pid
from tests.kernel.background import Background
from tests.kernel.cgroups import Cgroups, child_of, descriptors, found_pid, new_id, start_time, stat_fields
from tests.waiting import TIMEOUT_S

FORMS = [
    "docker/{id}",
    "kubepods/burstable/pod3f1d0c52-8a52-4b1e-9d4e-1d2f3a4b5c6d/{id}",
    "system.slice/docker-{id}.scope",
    "kubepods.slice/kubepods-pod1.slice/cri-containerd-{id}.scope",
    "kubepods.slice/crio-{id}.scope",
    "kubepods/besteffort/pod1/crio-{id}",
    "kubepods-pod1.slice:cri-containerd:{id}",
    "machine.slice/libpod-{id}.scope/container",
    "libpod_parent/libpod-{id}",
]


@pytest.mark.parametrize("form", FORMS)
def test_every_name_that_a_runtime_gives_to_a_cgroup(cgroups: Cgroups, form: str) -> None:
    full = new_id()
    process = cgroups.start(cgroups.make(form.format(id=full)))
    found = find([full])
    assert found == {full: Container(full, process.pid, start_time(process.pid), -1)}
    assert found[full].alive()
    assert not os.get_inheritable(found[full].pidfd)
    found[full].close()


@pytest.mark.parametrize(
    "form",
    [
        "crio-conmon-{id}.scope",
        "libpod-conmon-{id}.scope",
        "conmon-{id}",
        "pod{id}",
        "docker-{id}.mount",
        "x{id}",
        "{id}0",
    ],
)
def test_what_only_looks_like_a_container(cgroups: Cgroups, form: str) -> None:
    full = new_id()
    cgroups.start(cgroups.make(form.format(id=full)))
    assert find([full]) == {}


def test_all_ids_in_one_call(cgroups: Cgroups) -> None:
    ids = [new_id() for _ in range(3)]
    pids = {full: cgroups.start(cgroups.make(f"docker/{full}")).pid for full in ids}
    absent = new_id()
    found = find([ids[2], absent, ids[0], ids[1]])
    assert list(found) == [ids[2], ids[0], ids[1]]
    assert {full: container.pid for full, container in found.items()} == pids
    for container in found.values():
        container.close()


def test_a_unique_beginning_of_an_id_is_enough(cgroups: Cgroups) -> None:
    full = new_id()
    pid = cgroups.start(cgroups.make(f"docker/{full}")).pid
    found = find([full[:12], full[:40], full])
    assert {short: (container.id, container.pid) for short, container in found.items()} == dict.fromkeys(
        [full[:12], full[:40], full], (full, pid)
    )
    assert len({container.pidfd for container in found.values()}) == 1
    for container in found.values():
        container.close()


def test_a_beginning_that_two_ids_share_is_refused(cgroups: Cgroups) -> None:
    first = new_id()
    second = first[:12] + secrets.token_hex(26)
    for full in (first, second):
        cgroups.start(cgroups.make(f"docker/{full}"))
    before = descriptors()
    with pytest.raises(AmbiguousId, match=f"container id {first[:12]} is not unique: ") as caught:
        find([first, first[:12]])
    assert caught.value.full == tuple(sorted([first, second]))
    assert descriptors() == before
    assert found_pid(first) is not None


def test_an_id_that_begins_another_is_itself(cgroups: Cgroups) -> None:
    short = secrets.token_hex(8)
    pid = cgroups.start(cgroups.make(f"docker/{short}")).pid
    cgroups.start(cgroups.make(f"docker/{short}ff"))
    assert found_pid(short) == pid


def test_init_is_process_1_of_its_namespace_though_others_are_older(cgroups: Cgroups) -> None:
    full = new_id()
    folder = cgroups.make(f"docker/{full}")
    older = cgroups.start(folder)
    init = cgroups.start_init(folder)
    assert older.pid < init
    assert found_pid(full) == init


def test_an_exec_is_not_init(cgroups: Cgroups) -> None:
    full = new_id()
    folder = cgroups.make(f"docker/{full}")
    init = cgroups.start_init(folder)
    cgroups.start(folder, "nsenter", "--target", str(init), "--pid", "--mount")
    assert found_pid(full) == init


def test_a_container_inside_the_container_is_not_init(cgroups: Cgroups) -> None:
    outer, inner = new_id(), new_id()
    folder = cgroups.make(f"docker/{outer}")
    init = cgroups.start_init(folder)
    nested = cgroups.start(
        cgroups.make(f"docker/{outer}/docker/{inner}"),
        "nsenter", "--target", str(init), "--pid", "--mount", "unshare", "--pid", "--fork", "--kill-child",
    )  # fmt: skip
    assert found_pid(outer) == init
    assert found_pid(inner) == child_of(child_of(nested.pid))


def test_init_is_the_outermost_process_1_though_an_inner_one_is_older(cgroups: Cgroups) -> None:
    full = new_id()
    folder = cgroups.make(f"docker/{full}")
    unshare = ("unshare", "--pid", "--fork", "--kill-child")
    parent = cgroups.start(cgroups.make("elsewhere"), *unshare, *unshare, script=f"echo 0 > {folder}/cgroup.procs")
    inner = child_of(child_of(parent.pid))
    assert found_pid(full) == inner
    outer = child_of(cgroups.start_later(inner, folder, *unshare).pid)
    assert found_pid(full) == outer


def test_without_a_pid_namespace_the_oldest_is_init(cgroups: Cgroups) -> None:
    full = new_id()
    folder = cgroups.make(f"docker/{full}")
    init = cgroups.start(folder)
    cgroups.start_later(init.pid, folder)
    assert found_pid(full) == init.pid


def test_a_cgroup_that_a_container_names_after_another_does_not_take_its_place(cgroups: Cgroups) -> None:
    victim, hostile = new_id(), new_id()
    early = cgroups.start_init(cgroups.make(f"docker/{hostile}/{victim}"))
    assert found_pid(victim) == early  # as for a container in a container
    init = cgroups.start_init(cgroups.make(f"docker/{victim}"))
    assert found_pid(victim) == init


def test_a_zombie_is_no_container(cgroups: Cgroups) -> None:
    full = new_id()
    folder = cgroups.make(f"docker/{full}")
    zombie = cgroups.start(folder)
    held = find([full])[full]
    assert held.alive()
    os.kill(zombie.pid, signal.SIGKILL)
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    assert stat_fields(zombie.pid)[0] == "Z"
    assert not held.alive()
    held.close()
    assert find([full]) == {}
    with pytest.raises(ProcessLookupError):
        open_pid(zombie.pid)
    living = cgroups.start_later(zombie.pid, folder)
    assert found_pid(full) == living.pid


@pytest.mark.parametrize("name", [") Z 1 (", "a b)\n1 Z", ")))) ((", "(", "\\n", "\nNSpid:\t1\n"])
def test_a_process_may_call_itself_anything(cgroups: Cgroups, name: str) -> None:
    full = new_id()
    folder = cgroups.make(f"docker/{full}")
    escaped = "".join(f"\\{ord(character):03o}" for character in name)
    rename = f"printf '{escaped}' > /proc/$$/comm"
    init = cgroups.start(folder, script=rename)
    assert Path(f"/proc/{init.pid}/comm").read_text()[:-1] == name[:15]
    cgroups.start_later(init.pid, folder, script=rename)
    found = find([full])[full]
    assert (found.pid, found.start_time) == (init.pid, start_time(init.pid))
    found.close()


def test_a_process_that_was_replaced_while_we_looked_is_looked_for_again(
    cgroups: Cgroups, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = new_id()
    folder = cgroups.make(f"docker/{full}")
    first = cgroups.start(folder)
    second = cgroups.start_later(first.pid, folder)
    opened: list[int] = []
    real = os.pidfd_open

    def leave_first(pid: int, flags: int = 0) -> int:
        if not opened:
            (cgroups.top / "cgroup.procs").write_text(str(first.pid))
        opened.append(pid)
        return real(pid, flags)

    monkeypatch.setattr(os, "pidfd_open", leave_first)
    before = len(descriptors())
    assert found_pid(full) == second.pid
    assert opened == [first.pid, second.pid]
    assert len(descriptors()) == before


def test_processes_come_and_go_while_we_look(cgroups: Cgroups) -> None:
    full = new_id()
    folder = cgroups.make(f"docker/{full}")
    init = cgroups.start_init(folder)

    def come_and_go() -> None:
        subprocess.run(["sh", "-c", 'echo $$ > "$0/cgroup.procs"', folder], check=True)

    with Background(come_and_go):
        assert {found_pid(full) for _ in range(100)} == {init}


def test_nothing_leaks(cgroups: Cgroups) -> None:
    full = new_id()
    cgroups.start(cgroups.make(f"docker/{full}"))
    before = descriptors()
    for _ in range(100):
        found_pid(full)
        open_pid(os.getpid()).close()
    assert descriptors() == before


@pytest.fixture(params=["pidfd", "ENOSYS", "EPERM"])
def handle(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What holds a process: a pidfd, or a folder where the kernel or a filter refuses pidfds."""
    kind: str = request.param
    if kind != "pidfd":
        number = getattr(errno, kind)

        def refuse(_pid: int, _flags: int = 0) -> int:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "pidfd_open", refuse)
    return kind


@pytest.mark.usefixtures("handle")
def test_a_pid_stands_for_itself() -> None:
    container = open_pid(os.getpid())
    assert (container.id, container.pid, container.start_time) == ("", os.getpid(), start_time(os.getpid()))
    assert container.alive()
    container.close()
    container.close()
    assert container.pidfd == -1
    with pytest.raises(ValueError, match="closed"):
        container.alive()


def test_the_end_of_a_process_is_seen(handle: str) -> None:
    process = subprocess.Popen(["sleep", "infinity"])
    container = open_pid(process.pid)
    assert container.alive()
    assert not os.get_inheritable(container.pidfd)
    assert container.tells == (handle == "pidfd")
    process.kill()
    if container.tells:
        assert select.select([container.pidfd], [], [], TIMEOUT_S)[0]
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert stat_fields(process.pid)[0] == "Z"
    assert not container.alive()
    process.wait()
    assert not container.alive()
    container.close()


@pytest.mark.usefixtures("handle")
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to choose the pid of a process")
def test_another_process_with_the_same_pid_is_not_taken_for_it() -> None:
    first = subprocess.Popen(["sleep", "infinity"])
    held = open_pid(first.pid)
    first.kill()
    first.wait()
    with process_of_pid(first.pid):
        assert open_and_close(first.pid) == (first.pid, start_time(first.pid))
        assert not held.alive()
    held.close()


def open_and_close(pid: int) -> tuple[int, int]:
    """What a pid stands for now."""
    with contextlib.closing(open_pid(pid)) as container:
        return container.pid, container.start_time


@contextlib.contextmanager
def process_of_pid(pid: int) -> Iterator[None]:
    """Start a process with a pid of our choice (clone3(2), set_tid, by way of ns_last_pid)."""
    last = Path("/proc/sys/kernel/ns_last_pid")
    if not os.access(last, os.W_OK):
        pytest.skip("needs a kernel that lets us choose the pid of a process (CONFIG_CHECKPOINT_RESTORE)")
    for _ in range(1000):  # others start processes too
        last.write_text(str(pid - 1))
        process = subprocess.Popen(["sleep", "infinity"])
        try:
            if process.pid == pid:
                yield
                return
        finally:
            process.kill()
            process.wait()
    pytest.fail(f"no process got the pid {pid}")


@pytest.mark.usefixtures("handle")
def test_no_such_process() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    for pid in (process.pid, 0, -1):
        with pytest.raises(ProcessLookupError, match=f"no process {pid}"):
            open_pid(pid)


@pytest.mark.usefixtures("handle")
def test_a_thread_is_no_process() -> None:
    ready, done = threading.Event(), threading.Event()

    def wait() -> None:
        ready.set()
        done.wait()

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        ready.wait()
        assert thread.native_id is not None
        with pytest.raises(ProcessLookupError):
            open_pid(thread.native_id)
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("short", ["", "0" * 11, "0" * 65, "A" * 12, "docker://" + "0" * 64, "../" + "0" * 12])
def test_what_is_no_id(short: str) -> None:
    with pytest.raises(ValueError, match="is no container id"):
        find([short])


def test_nothing_to_find() -> None:
    assert find([]) == {}
    assert find([new_id()]) == {}
