"""What runtimes note about containers, in a root made up."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from argusd.pidfiles import init_pid

ID = "a" * 64
CONTAINERD = "run/containerd/io.containerd.runtime.v2.task/k8s.io"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path


def note(root: Path, folder: str, name: str, text: str) -> Path:
    path = root / folder / ID / name
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        (CONTAINERD, "init.pid"),
        ("run/containerd/io.containerd.runtime.v2.task/moby", "init.pid"),
        ("run/docker/containerd/daemon/io.containerd.runtime.v2.task/moby", "init.pid"),
        ("run/containers/storage/overlay-containers", "userdata/pidfile"),
    ],
)
@pytest.mark.parametrize("text", ["4711", "4711\n"])
def test_the_note_of_a_runtime(root: Path, folder: str, name: str, text: str) -> None:
    note(root, folder, name, text)
    assert init_pid(ID, root) == 4711
    assert init_pid("b" * 64, root) is None


@pytest.mark.parametrize("text", ["", "x", "-1", "1 2", "0x10", "1.5", "\N{SUPERSCRIPT TWO}", "\0"])
def test_what_is_no_pid(root: Path, text: str) -> None:
    note(root, CONTAINERD, "init.pid", text)
    assert init_pid(ID, root) is None


def test_a_large_file_is_not_read(root: Path) -> None:
    note(root, CONTAINERD, "init.pid", " " * 100 + "4711")
    assert init_pid(ID, root) is None


@pytest.mark.parametrize(
    "part", ["run", "run/containerd", CONTAINERD, f"{CONTAINERD}/{ID}", f"{CONTAINERD}/{ID}/init.pid"]
)
def test_no_link_is_followed(root: Path, part: str) -> None:
    note(root / "real", CONTAINERD, "init.pid", "4711")
    assert init_pid(ID, root / "real") == 4711
    (root / part).parent.mkdir(parents=True, exist_ok=True)
    (root / part).symlink_to(root / "real" / part)
    assert init_pid(ID, root) is None


def test_a_fifo_does_not_block(root: Path) -> None:
    path = note(root, CONTAINERD, "init.pid", "")
    path.unlink()
    os.mkfifo(path)
    assert init_pid(ID, root) is None


def test_no_descriptor_stays_open(root: Path) -> None:
    note(root, CONTAINERD, "init.pid", "4711")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for name in (ID, "b" * 64):
        init_pid(name, root)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
