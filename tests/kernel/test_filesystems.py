"""The stories on the file systems that nodes have: ext4, tmpfs, and overlayfs with what lies in its lower layer."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kernel import test_paths, test_stories
from tests.kernel.container import Way
from tests.kernel.story import Stage, Story, parse

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: file systems are mounted")

OVERLAY_LOWER = r"""
a file of the lower layer, before and after it is copied up
    watch    /d/f all
    read     /d/f        -> OPEN file /d/f
                         -> ACCESS file /d/f
                         -> CLOSE_NOWRITE file /d/f
    append   /d/f        -> OPEN file /d/f
                         -> MODIFY file /d/f
                         -> CLOSE_WRITE file /d/f
    append   /d/f        -> OPEN file /d/f
                         -> MODIFY file /d/f
                         -> CLOSE_WRITE file /d/f
    chmod    600 /d/f    -> ATTRIB file /d/f

a file of the lower layer whose first change is its mode
    watch    /d/f attrib modify
    chmod    600 /d/f    -> ATTRIB file /d/f
    append   /d/f        -> MODIFY file /d/f

a file of the lower layer in a watched directory
    watch    /d all
    append   /d/f        -> OPEN file /d/f
                         -> MODIFY file /d/f
                         -> CLOSE_WRITE file /d/f
    truncate /d/f        -> MODIFY file /d/f

a file of the lower layer that somebody holds open while it is copied up
    hold     /d/f
    watch    /d/f modify as=path
    watch    /d modify as=directory
    append   /d/f        -> directory: MODIFY file /d/f
                         -> path: MODIFY file /d/f
    release  /d/f        ->
    append   /d/f        -> directory: MODIFY file /d/f
                         -> path: MODIFY file /d/f

a directory of the lower layer, before and after it is copied up
    watch    /d/low recursive create modify delete
    write    /d/low/x    -> CREATE file /d/low/x
                         -> MODIFY file /d/low/x
    append   /d/low/sub/f -> MODIFY file /d/low/sub/f
    mkdir    /d/low/sub/new -> CREATE directory /d/low/sub/new
    touch    /d/low/sub/new/x -> CREATE file /d/low/sub/new/x
    unlink   /d/low/sub/f -> DELETE file /d/low/sub/f
    touch    /d/low/sub/f -> CREATE file /d/low/sub/f

a directory of the lower layer is removed and made again
    watch    /d recursive create
    rmtree   /d/low      ->
    mkdir    /d/low      -> CREATE directory /d/low
    touch    /d/low/x    -> CREATE file /d/low/x

a directory of the lower layer cannot be renamed and is copied
    watch    /d recursive create
    mv       /d/low /d/new ~> CREATE directory /d/new
                         -> CREATE directory /d/new/sub
                         -> CREATE file /d/new/sub/f
    touch    /d/new/sub/x -> CREATE file /d/new/sub/x
    mkdir    /d/low      -> CREATE directory /d/low

a file of the lower layer is replaced by rename
    watch    /d/f modify movedto deleteself
    write    /d/g ; rename /d/g /d/f ~> MOVED_TO file /d/f
                         -> MODIFY file /d/f
                         -> DELETE_SELF file /d/f
    append   /d/f        -> MODIFY file /d/f

a file of the lower layer is deleted and made again
    watch    /d/f modify create deleteself
    unlink   /d/f        -> DELETE_SELF file /d/f
    touch    /d/f        -> CREATE file /d/f
                         -> MODIFY file /d/f
    append   /d/f        -> MODIFY file /d/f

a file that was copied up since the last look counts as another one when it is moved away and back
    watch    /d/f modify movedto
    append   /d/f        -> MODIFY file /d/f
    rename   /d/f /d/g   ->
    append   /d/g        ->
    rename   /d/g /d/f   -> MOVED_TO file /d/f
                         -> MODIFY file /d/f
    append   /d/f        -> MODIFY file /d/f
    rename   /d/f /d/g   ->
    rename   /d/g /d/f   ->
    append   /d/f        -> MODIFY file /d/f

a file that was copied up is the same one when the link to it is pointed at it again
    symlink  f /d/l
    watch    /d/l modify
    append   /d/f        -> MODIFY file /d/l
    repoint  ./f /d/l    ->
    append   /d/f        -> MODIFY file /d/l

copying up parts what were two names of one file
    watch    /d/f modify as=one
    watch    /d/link modify as=two
    append   /d/f        -> one: MODIFY file /d/f
    append   /d/link     -> two: MODIFY file /d/link
"""

SAME_ON_EVERY = [
    story
    for story in (*test_stories.STORIES, *test_paths.STORIES)
    if not any(word in {"mount", "umount"} for step in story.steps for word in step.words)
]
LOWER_STORIES = parse(OVERLAY_LOWER)


class Place:
    """Mounts that a test makes, unmounted in the end."""

    def __init__(self) -> None:
        self._mounted: list[Path] = []

    def mount(self, folder: Path, *arguments: str | Path) -> Path:
        """Mount at ``folder``, which is made."""
        folder.mkdir()
        subprocess.run(["mount", *arguments, folder], check=True, capture_output=True)
        self._mounted.append(folder)
        return folder

    def overlay(self, folder: Path, lower: Path, upper: Path) -> Path:
        """Mount an overlay as container runtimes do: no index, no redirects."""
        for name in ("upper", "work"):
            (upper / name).mkdir()
        options = f"lowerdir={lower},upperdir={upper}/upper,workdir={upper}/work,index=off,redirect_dir=off"
        return self.mount(folder, "-t", "overlay", "overlay", "-o", options)

    def close(self) -> None:
        """Unmount, the last one first."""
        while self._mounted:
            subprocess.run(["umount", self._mounted.pop()], check=True)


@pytest.fixture
def place() -> Iterator[Place]:
    place = Place()
    yield place
    place.close()


def ext4(place: Place, folder: Path) -> Path:
    image = folder / "image"
    with image.open("wb") as file:
        file.truncate(16 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    return place.mount(folder / "ext4", "-o", "loop", image)


def tmpfs(place: Place, folder: Path) -> Path:
    return place.mount(folder / "tmpfs", "-t", "tmpfs", "-o", "size=16m", "tmpfs")


def overlay(place: Place, folder: Path) -> Path:
    (folder / "lower").mkdir()
    (folder / "layer").mkdir()
    return place.overlay(folder / "overlay", folder / "lower", folder / "layer")


@pytest.mark.skipif(shutil.which("mkfs.ext4") is None, reason="needs mkfs.ext4")
def test_stories_on_ext4(place: Place, tmp_path: Path) -> None:
    play_all(ext4(place, tmp_path))


def test_stories_on_tmpfs(place: Place, tmp_path: Path) -> None:
    play_all(tmpfs(place, tmp_path))


@pytest.mark.parametrize("way", [Way.OPENAT2, Way.SETNS], ids=lambda way: way.value)
def test_stories_on_overlayfs(place: Place, tmp_path: Path, way: Way) -> None:
    play_all(overlay(place, tmp_path), way)


def play_all(folder: Path, way: Way = Way.OPENAT2) -> None:
    """Play every story in a folder of its own; a failure names the story."""
    for number, story in enumerate(SAME_ON_EVERY):
        stage = Stage(folder / str(number), way)
        try:
            stage.play(story)
        finally:
            stage.close()
        shutil.rmtree(folder / str(number))


def one_layer(place: Place, folder: Path) -> tuple[Path, Path]:
    """Lower and upper layer on one file system: inode numbers stay through a copy-up."""
    top = tmpfs(place, folder)
    (top / "lower").mkdir()
    (top / "layer").mkdir()
    return top / "lower", top / "layer"


def two_layers(place: Place, folder: Path) -> tuple[Path, Path]:
    """Lower and upper layer on two file systems: stat(2) tells another number, or device, after a copy-up."""
    (folder / "lower").mkdir()
    return folder / "lower", tmpfs(place, folder)


@pytest.mark.parametrize("layers", [one_layer, two_layers], ids=lambda layers: layers.__name__)
@pytest.mark.parametrize("story", LOWER_STORIES, ids=lambda story: story.title.replace(" ", "_"))
def test_story_of_the_lower_layer(
    place: Place, tmp_path: Path, story: Story, layers: Callable[[Place, Path], tuple[Path, Path]]
) -> None:
    lower, upper = layers(place, tmp_path)
    (lower / "root/d/low/sub").mkdir(parents=True)
    (lower / "root/d/low/sub/f").write_bytes(b"1")
    (lower / "root/d/f").write_bytes(b"1")
    (lower / "root/d/link").hardlink_to(lower / "root/d/f")
    stage = Stage(place.overlay(tmp_path / "overlay", lower, upper))
    try:
        stage.play(story)
    finally:
        stage.close()
