"""Kubernetes volumes: every update of a key is told once, however fast they come and through whatever path."""

from __future__ import annotations

import ctypes
import os
from collections import Counter
from collections.abc import Iterator

import pytest

from argusd._inotify import EVENTS
from tests.kernel.story import Stage
from tests.kernel.volume import Volume

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: the watched process has a root of its own")

KEYS = tuple(f"key{number}" for number in range(5))
MODIFY = EVENTS["MODIFY"]
MS_BIND = 4096
MNT_DETACH = 2


def payload(version: int, keys: tuple[str, ...] = KEYS) -> dict[str, bytes]:
    return {key: f"{key} {version}\n".encode() for key in keys}


@pytest.fixture
def volume(stage: Stage) -> Volume:
    volume = Volume(stage.world.path("/d"))
    volume.update(payload(0))
    return volume


def test_swap_is_one_modify_for_each_key_of_a_watched_directory(stage: Stage, volume: Volume) -> None:
    stage.watching.watch("-", [b"/d"], MODIFY)
    for version in range(1, 4):
        volume.update(payload(version))
        assert sorted(stage.watching.lines()) == [f"-: MODIFY file /d/{key}" for key in KEYS]


def test_swap_is_told_beside_the_events_of_the_kernel(stage: Stage, volume: Volume) -> None:
    stage.watching.watch("-", [b"/d"], MODIFY | EVENTS["CREATE"] | EVENTS["MOVED_TO"] | EVENTS["DELETE"])
    volume.update(payload(1))
    lines = stage.watching.lines()
    swaps = [line for line in lines if "MODIFY" in line]
    assert sorted(swaps) == [f"-: MODIFY file /d/{key}" for key in KEYS]
    assert [line for line in lines if line not in swaps] == [
        "-: CREATE directory /d/..2026_11_22_00_00_02.100000002",
        "-: CREATE file /d/..data_tmp",
        "-: MOVED_TO file /d/..data",
        "-: DELETE directory /d/..2026_11_22_00_00_01.100000001",
    ]


def test_swap_is_one_modify_for_the_path_of_a_key(stage: Stage, volume: Volume) -> None:
    stage.watching.watch("-", [b"/d/key3"], MODIFY)
    for version in range(1, 4):
        volume.update(payload(version))
        assert stage.watching.lines() == ["-: MODIFY file /d/key3"]


def test_swap_through_a_recursive_watch(stage: Stage, volume: Volume) -> None:
    stage.watching.watch("-", [b"/d"], MODIFY, recursive=True)
    for version in range(1, 4):
        volume.update(payload(version))
        lines = [line for line in stage.watching.lines() if "/..2026_" not in line]
        assert sorted(lines) == [f"-: MODIFY file /d/{key}" for key in KEYS]


def test_watch_without_modify_is_told_only_what_it_asked_for(stage: Stage, volume: Volume) -> None:
    stage.watching.watch("-", [b"/d"], EVENTS["MOVED_TO"])
    volume.update(payload(1))
    assert stage.watching.lines() == ["-: MOVED_TO file /d/..data"]


def test_keys_that_come_and_go(stage: Stage, volume: Volume) -> None:
    stage.watching.watch("-", [b"/d"], MODIFY | EVENTS["CREATE"] | EVENTS["DELETE"])
    volume.update(payload(1, ("key0", "key1", "new")))
    lines = [line for line in stage.watching.lines() if "/.." not in line]
    assert Counter(line for line in lines if not line.endswith("/new")) >= Counter(
        ["-: MODIFY file /d/key0", "-: MODIFY file /d/key1", *(f"-: DELETE file /d/{key}" for key in KEYS[2:])]
    )
    assert lines.count("-: CREATE file /d/new") == 1
    assert lines.count("-: MODIFY file /d/key0") == lines.count("-: MODIFY file /d/key1") == 1
    volume.update(payload(2, ("key0", "new")))
    lines = [line for line in stage.watching.lines() if "/.." not in line]
    assert lines.count("-: MODIFY file /d/key0") == lines.count("-: MODIFY file /d/new") == 1
    assert lines.count("-: DELETE file /d/key1") == 1


def test_key_that_is_added_later_to_a_watched_path(stage: Stage, volume: Volume) -> None:
    stage.watching.watch("-", [b"/d/new"], MODIFY | EVENTS["CREATE"])
    volume.update(payload(1))
    assert stage.watching.lines() == []
    volume.update(payload(2, (*KEYS, "new")))
    assert stage.watching.lines() == ["-: CREATE file /d/new", "-: MODIFY file /d/new"]
    volume.update(payload(3, (*KEYS, "new")))
    assert stage.watching.lines() == ["-: MODIFY file /d/new"]
    volume.update(payload(4))
    assert stage.watching.lines() == []
    volume.update(payload(5, (*KEYS, "new")))
    assert stage.watching.lines() == ["-: CREATE file /d/new", "-: MODIFY file /d/new"]


def test_key_that_is_a_path_of_several_names(stage: Stage) -> None:
    volume = Volume(stage.world.path("/d"))
    volume.update(payload(0, ("dir/key", "dir/sub/other", "plain")))
    stage.watching.watch("directory", [b"/d"], MODIFY)
    stage.watching.watch("key", [b"/d/dir/key"], MODIFY)
    stage.watching.watch("link", [b"/d/dir"], MODIFY)
    for version in range(1, 4):
        volume.update(payload(version, ("dir/key", "dir/sub/other", "plain")))
        lines = stage.watching.lines()
        assert sorted(line for line in lines if line.startswith("directory: ")) in (
            ["directory: MODIFY directory /d/dir", "directory: MODIFY file /d/plain"],
            ["directory: MODIFY file /d/dir", "directory: MODIFY file /d/plain"],
        )
        assert [line for line in lines if line.startswith("key: ")] == ["key: MODIFY file /d/dir/key"]
        assert [line for line in lines if line.startswith("link: ")] == ["link: MODIFY directory /d/dir"]


def test_volume_that_is_first_filled_while_it_is_watched(stage: Stage) -> None:
    stage.watching.watch("directory", [b"/d"], EVENTS["CREATE"])
    stage.watching.watch("key", [b"/d/key0"], EVENTS["CREATE"] | MODIFY)
    Volume(stage.world.path("/d")).update(payload(0, ("key0",)))
    lines = stage.watching.lines()
    assert [line for line in lines if line.startswith("key: ")] == [
        "key: CREATE file /d/key0",
        "key: MODIFY file /d/key0",
    ]
    assert lines.count("directory: CREATE file /d/key0") == 1


def test_hundred_swaps_without_a_pause_are_each_told_once(stage: Stage, volume: Volume) -> None:
    stage.watching.watch("directory", [b"/d"], MODIFY)
    stage.watching.watch("key", [b"/d/key3"], MODIFY)
    for version in range(1, 101):
        volume.update(payload(version))
    assert Counter(stage.watching.lines()) == {
        **{f"directory: MODIFY file /d/{key}": 100 for key in KEYS},
        "key: MODIFY file /d/key3": 100,
    }


def test_hundred_swaps_without_a_pause_in_a_recursive_watch(stage: Stage, volume: Volume) -> None:
    stage.watching.watch("-", [b"/d"], MODIFY, recursive=True)
    for version in range(1, 101):
        volume.update(payload(version))
    counts = Counter(line for line in stage.watching.lines() if "/..2026_" not in line)
    assert counts == {f"-: MODIFY file /d/{key}": 100 for key in KEYS}


@pytest.fixture
def sub_path(stage: Stage) -> Iterator[Stage]:
    """A file of /e is mounted on /d/key, as the container runtime does for a volumeMount with subPath."""
    libc = ctypes.CDLL(None, use_errno=True)
    source, target = stage.world.path("/e/key"), stage.world.path("/d/key")
    source.write_bytes(b"1")
    target.touch()
    assert libc.mount(os.fsencode(source), os.fsencode(target), None, MS_BIND, None) == 0
    yield stage
    assert libc.umount2(os.fsencode(target), MNT_DETACH) == 0


def test_sub_path_tells_what_is_written_through_the_source(sub_path: Stage) -> None:
    sub_path.watching.watch("-", [b"/d/key"], MODIFY | EVENTS["ATTRIB"])
    sub_path.world.operations["append"]("/e/key")
    assert sub_path.watching.lines() == ["-: MODIFY file /d/key"]
    sub_path.world.operations["append"]("/d/key")
    assert sub_path.watching.lines() == ["-: MODIFY file /d/key"]


def test_sub_path_stays_with_the_mounted_file_when_the_source_is_replaced(sub_path: Stage) -> None:
    sub_path.watching.watch("-", [b"/d/key"], MODIFY)
    sub_path.world.path("/e/new").write_bytes(b"2")
    sub_path.world.operations["rename"]("/e/new", "/e/key")
    assert sub_path.watching.lines() == []
    sub_path.world.operations["append"]("/e/key")
    assert sub_path.watching.lines() == []
    sub_path.world.operations["append"]("/d/key")
    assert sub_path.watching.lines() == ["-: MODIFY file /d/key"]
