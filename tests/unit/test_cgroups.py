"""The text of /proc/PID/cgroup and the folders of a cgroup tree, made up."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from argusd import cgroups
from argusd.cgroups import depths_in, members, trees

A, B, C = ("a" * 64, "b" * 64, "c" * 64)


def line(path: str, hierarchy: str = "0::") -> bytes:
    return f"{hierarchy}{path}\n".encode()


@pytest.mark.parametrize(
    "path",
    [
        f"/docker/{A}",
        f"/system.slice/docker-{A}.scope",
        f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-{A}.scope",
        f"/kubepods/besteffort/pod1/{A}",
        f"/kubepods/besteffort/pod1/crio-{A}",
        f"/system.slice:docker:{A}",
        f"/system.slice/containerd.service/kubepods-pod1.slice:cri-containerd:{A}",
        f"/machine.slice/libpod-{A}.scope/container",
        f"/../../kubepods/pod1/{A}",
        f"/../{A}",
        f"/docker/{A}/init.scope",
    ],
)
def test_the_container_of_a_path(path: str) -> None:
    assert depths_in(line(path)) == {A.encode(): 0}


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/init.scope",
        f"/{A[:11]}",
        f"/{A}a",
        f"/{A.upper()}",
        f"/crio-conmon-{A}.scope",
        f"/docker-{A}.service",
        f"/x-{A}",
        f"/pod{A}",
        f"/docker-{A}.scope.d",
        f"/a:B:{A}",
        f"/ {A}",
    ],
)
def test_a_path_without_a_container(path: str) -> None:
    assert depths_in(line(path)) == {}


def test_the_depth_is_the_number_of_containers_above() -> None:
    assert depths_in(line(f"/docker/{A}/docker/{B}/{C}")) == {A.encode(): 0, B.encode(): 1, C.encode(): 2}


def test_a_name_that_is_there_twice_counts_where_it_is_higher() -> None:
    text = line(f"/docker/{A}/docker/{B}/{A}", "3:cpu:") + line("/", "2:pids:") + line(f"/docker/{A}/{B}")
    assert depths_in(text) == {A.encode(): 0, B.encode(): 1}


def test_hierarchies_that_differ() -> None:
    text = line(f"/docker/{A}/{B}", "12:memory:") + line(f"/{B}", "1:name=systemd:")
    assert depths_in(text) == {A.encode(): 0, B.encode(): 0}


@given(st.lists(st.one_of(st.binary(max_size=80), st.sampled_from([b"/", b"\n", A.encode(), b"docker-", b".scope"]))))
def test_any_text_at_all(parts: list[bytes]) -> None:
    text = b"".join(parts)
    for name, depth in depths_in(text).items():
        assert 12 <= len(name) <= 64
        assert name in text
        assert depth >= 0


def test_half_a_line() -> None:
    whole = line(f"/docker/{A}")
    for size in range(len(whole) - 2):
        assert A.encode() not in depths_in(whole[:size])


class Tree:
    """Folders that look like a hierarchy."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.make("", 1)

    def make(self, path: str, *pids: int) -> Path:
        """Make a cgroup, and what is missing above it."""
        folder = self.top / path
        folder.mkdir(parents=True, exist_ok=True)
        for place in (folder, *folder.parents):
            if place.is_relative_to(self.top) and not (place / "cgroup.procs").exists():
                (place / "cgroup.procs").write_text("")
        (folder / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))
        return folder


def watch_looks(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The folders that are listed from now on."""
    looked: list[bytes] = []
    real = cgroups._folders

    def folders(folder: bytes) -> list[bytes]:
        looked.append(folder)
        return real(folder)

    monkeypatch.setattr(cgroups, "_folders", folders)
    return looked


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "cgroup")


def test_members_are_those_of_the_cgroup_and_below(tree: Tree) -> None:
    tree.make(f"kubepods/pod1/{A}", 10, 11)
    tree.make(f"kubepods/pod1/{A}/init.scope", 12)
    tree.make(f"kubepods/pod1/{A}/system.slice/x.service", 13)
    tree.make(f"kubepods/pod1/{B}", 20)
    tree.make("system.slice/sshd.service", 30)
    assert members(tree.top, {A.encode()}) == {A.encode(): {10, 11, 12, 13}}
    assert members(tree.top, {A.encode(), B.encode(), C.encode()}) == {A.encode(): {10, 11, 12, 13}, B.encode(): {20}}


def test_an_empty_cgroup_and_one_of_a_similar_name_are_passed_by(tree: Tree) -> None:
    tree.make(f"a/{A}")
    tree.make(f"machine.slice/libpod-{A}.scope/container", 10)
    tree.make(f"machine.slice/libpod-conmon-{A}.scope", 12)
    tree.make(f"z/{A}")
    assert members(tree.top, {A.encode()}) == {A.encode(): {10}}


def test_nothing_more_is_read_when_all_are_found(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(100):
        tree.make(f"{number}/{A if number % 10 else B}", 10)
    looked = watch_looks(monkeypatch)
    assert members(tree.top, {A.encode(), B.encode()}) == {A.encode(): {10}, B.encode(): {10}}
    assert len(looked) < 100


def test_containers_inside_of_containers_are_not_looked_for(tree: Tree) -> None:
    tree.make(f"docker/{A}/docker/{B}", 10)
    tree.make(f"docker/{A}/docker/{C}", 11)
    tree.make(f"docker/{B}", 20)
    assert members(tree.top, {B.encode(), C.encode()}) == {B.encode(): {20}}


def test_a_process_outside_of_our_namespace_is_none(tree: Tree) -> None:
    tree.make(f"docker/{A}", 0, 0)
    tree.make(f"docker/{B}", 0, 20)
    tree.make(f"docker/{C}")
    assert members(tree.top, {A.encode(), B.encode(), C.encode()}) == {B.encode(): {20}}


def test_links_are_not_followed(tree: Tree, tmp_path: Path) -> None:
    outside = Tree(tmp_path / "outside")
    outside.make(f"docker/{A}", 10)
    (tree.top / "docker").symlink_to(outside.top / "docker")
    (tree.top / A).symlink_to(outside.top / "docker" / A)
    assert members(tree.top, {A.encode()}) == {}


@pytest.mark.parametrize("within", ["", f"docker/{A}/"])
def test_whoever_makes_cgroups_without_end_does_not_stop_us(
    tree: Tree, within: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroups, "_FOLDERS", 10)
    for number in range(100):
        tree.make(f"{within}{number}/x", 10)
    looked = watch_looks(monkeypatch)
    assert members(tree.top, {A.encode()}) == {}
    assert 10 <= len(looked) <= 20


def test_names_that_are_no_text(tree: Tree) -> None:
    (tree.top / os.fsdecode(b"\xff\xfe")).mkdir()
    tree.make(f"docker/{A}", 10)
    assert members(tree.top, {A.encode()}) == {A.encode(): {10}}


def test_where_there_is_no_tree(tmp_path: Path) -> None:
    assert list(trees(tmp_path / "absent")) == []
    assert list(trees(tmp_path)) == []
    (tmp_path / "systemd").mkdir()  # its mount was not passed on
    assert list(trees(tmp_path)) == []
    assert members(tmp_path / "absent", {A.encode()}) == {}


def test_v2_is_one_tree(tmp_path: Path) -> None:
    Tree(tmp_path / "cgroup").make("unified", 1)
    assert list(trees(tmp_path / "cgroup")) == [tmp_path / "cgroup"]


def test_v1_and_hybrid_are_many_and_the_surest_come_first(tmp_path: Path) -> None:
    for name in ("cpu,cpuacct", "memory", "systemd", "unified", "blkio"):
        Tree(tmp_path / name)
    (tmp_path / "cpu").symlink_to("cpu,cpuacct")
    (tmp_path / "empty").mkdir()
    names = [tree.name for tree in trees(tmp_path)]
    assert names == ["systemd", "unified", "blkio", "cpu,cpuacct", "memory"]
