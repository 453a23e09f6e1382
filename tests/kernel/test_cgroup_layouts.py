"""Containers are found by their cgroup however the hierarchies are mounted, in the tree where that is there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from argusd import cgroups as tree
from argusd import containers, processes
from argusd.containers import AmbiguousId, find
from tests.kernel.cgroups import Cgroups, found_pid, mount_point, new_id
from tests.waiting import TIMEOUT_S

ROOT = Path(__file__).parents[2]

# Says which process stands for a container, and whether the tree was enough to know.
PROGRAM = """
import sys
from argusd import processes
from argusd.containers import find

listed, real = [], processes.listed
processes.listed = lambda: listed.append(1) or real()
print(find([sys.argv[1]])[sys.argv[1]].pid, "processes" if listed else "tree")
"""


@pytest.fixture(autouse=True)
def no_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    """No runtime has noted anything of these containers; do not look, so that nothing else is read."""
    monkeypatch.setattr("argusd.pidfiles.init_pid", lambda _full: None)


def answer(full: str, *wrapper: str) -> str:
    """What a process in another place finds."""
    command = [*wrapper, sys.executable, "-c", PROGRAM, full]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def behind(script: str) -> tuple[str, ...]:
    """A command with a mount namespace of its own, in which ``script`` has run."""
    return ("unshare", "--mount", "sh", "-ec", f'{script}\nexec "$@"', "sh")


@pytest.mark.parametrize("cgroups", ["v1-tree", "v2-tree"], indirect=True)
def test_from_a_private_cgroup_namespace(cgroups: Cgroups) -> None:
    full = new_id()
    init = cgroups.start(cgroups.make(f"kubepods/pod1/{full}"))
    daemon = cgroups.make("kubepods/pod2/argusd")
    enter = ("sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec unshare --cgroup "$@"', str(daemon))
    assert answer(full, *enter) == f"{init.pid} tree"


@pytest.mark.parametrize("cgroups", ["v2-tree"], indirect=True)
def test_where_only_v2_is_mounted(cgroups: Cgroups) -> None:
    full = new_id()
    init = cgroups.start(cgroups.make(f"kubepods.slice/kubepods-pod1.slice/cri-containerd-{full}.scope"))
    assert answer(full, *behind("mount -t cgroup2 none /sys/fs/cgroup")) == f"{init.pid} tree"


@pytest.mark.parametrize("cgroups", ["v1-tree"], indirect=True)
def test_where_only_v1_is_mounted(cgroups: Cgroups) -> None:
    full = new_id()
    init = cgroups.start(cgroups.make(f"docker/{full}"))
    assert mount_point("v1") is not None
    point = mount_point("v1")
    script = f"""
        mkdir -p /tmp/argusd-v1-$$ && mount --bind {point} /tmp/argusd-v1-$$
        mount -t tmpfs none /sys/fs/cgroup && mkdir /sys/fs/cgroup/systemd
        mount --move /tmp/argusd-v1-$$ /sys/fs/cgroup/systemd && rmdir /tmp/argusd-v1-$$
    """
    assert answer(full, *behind(script)) == f"{init.pid} tree"


@pytest.mark.parametrize("cgroups", ["v1-tree", "v2-tree"], indirect=True)
def test_where_only_the_daemons_own_cgroup_is_mounted(cgroups: Cgroups) -> None:
    full = new_id()
    init = cgroups.start(cgroups.make(f"docker/{full}"))
    own = cgroups.make("docker/own")
    assert answer(full, *behind(f"mount --bind {own} /sys/fs/cgroup")) == f"{init.pid} processes"


@pytest.mark.parametrize("cgroups", ["v1-tree", "v2-tree"], indirect=True)
def test_where_nothing_is_mounted(cgroups: Cgroups) -> None:
    full = new_id()
    init = cgroups.start(cgroups.make(f"docker/{full}"))
    assert answer(full, *behind("mount -t tmpfs none /sys/fs/cgroup")) == f"{init.pid} processes"


@pytest.mark.parametrize("cgroups", ["v1-tree", "v2-tree"], indirect=True)
def test_where_the_tree_is_of_a_child_pid_namespace(cgroups: Cgroups) -> None:
    """``cgroup.procs`` lists 0 for each process that is not ours to see."""
    full = new_id()
    folder = cgroups.make(f"docker/{full}")
    cgroups.start(folder)
    program = PROGRAM.replace("[sys.argv[1]].pid", "").replace("find([sys.argv[1]])", "not find([sys.argv[1]])")
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", program, full],
        capture_output=True, text=True, cwd=ROOT, timeout=TIMEOUT_S, check=True,
    )  # fmt: skip
    assert done.stdout == "True processes\n"


@pytest.mark.parametrize("cgroups", ["v1-tree", "v2-tree"], indirect=True)
def test_the_tree_spares_us_all_other_processes(cgroups: Cgroups, monkeypatch: pytest.MonkeyPatch) -> None:
    full = new_id()
    folder = cgroups.make(f"docker/{full}")
    ours = {cgroups.start(folder).pid, cgroups.start(folder).pid}
    cgroups.start(cgroups.make(f"docker/{new_id()}"))
    read: set[str] = set()
    real = processes.read

    def reading(path: str | bytes, limit: int, *, folder: int | None = None) -> bytes:
        if str(path).startswith("/proc/"):
            read.add(str(path).split("/")[2])
        return real(path, limit, folder=folder)

    def listing() -> list[int]:
        raise AssertionError("all processes are listed")

    monkeypatch.setattr(processes, "read", reading)
    monkeypatch.setattr(processes, "listed", listing)
    assert found_pid(full) in ours
    assert read == set(map(str, ours))


@pytest.mark.parametrize("cgroups", ["v1-tree", "v2-tree"], indirect=True)
def test_the_tree_proposes_and_the_process_decides(cgroups: Cgroups, monkeypatch: pytest.MonkeyPatch) -> None:
    full, other = new_id(), new_id()
    init = cgroups.start(cgroups.make(f"docker/{full}"))
    stranger = cgroups.start(cgroups.make(f"docker/{other}"))
    inner = cgroups.start_init(cgroups.make(f"docker/{other}/{full}"))  # it names a cgroup of its own after the other

    def lie(_tree: Path, ids: set[bytes]) -> dict[bytes, set[int]]:
        return {name: {stranger.pid, inner, 1} for name in ids}

    monkeypatch.setattr(tree, "members", lie)
    assert found_pid(full) == init.pid


@pytest.mark.parametrize("cgroups", ["v1-tree", "v2-tree"], indirect=True)
def test_a_note_of_the_runtime_counts_when_it_names_the_init(cgroups: Cgroups, monkeypatch: pytest.MonkeyPatch) -> None:
    full, other = new_id(), new_id()
    folder = cgroups.make(f"docker/{full}")
    init = cgroups.start_init(folder)
    late = cgroups.start_later(init, folder)
    stranger = cgroups.start_init(cgroups.make(f"docker/{other}"))
    nested = cgroups.start_init(cgroups.make(f"docker/{other}/{full}"))
    notes = [init]
    monkeypatch.setattr("argusd.pidfiles.init_pid", lambda _full: notes[-1])
    with monkeypatch.context() as patch:
        patch.setattr(tree, "members", lambda *_: pytest.fail("the tree is looked at"))
        patch.setattr(processes, "listed", lambda: pytest.fail("all processes are listed"))
        assert found_pid(full) == init
    for noted in (late.pid, stranger, nested, 1, 1 << 40):
        notes.append(noted)
        assert found_pid(full) == init


@pytest.mark.parametrize("cgroups", ["v1-tree"], indirect=True)
def test_a_short_id_that_two_share_is_refused_though_one_is_known_already(cgroups: Cgroups) -> None:
    first = new_id()
    second = first[:20] + new_id()[20:]
    for full in (first, second):
        cgroups.start(cgroups.make(f"docker/{full}"))
    with pytest.raises(AmbiguousId):
        find([first, second, first[:20]])
    assert containers.find([first[:12] + new_id()[12:]]) == {}
