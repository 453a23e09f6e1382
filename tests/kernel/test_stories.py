"""What a watched tree reports, told as stories; see story.py for how they are read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from random import Random

import pytest

from argusd._inotify import EVENTS
from tests.kernel.story import Stage, Story, exchange, parse

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="needs root: stories have a root of their own and mount file systems"
)

RECURSION = r"""
a directory and its entries, but nothing below without recursive
    mkdir    /d/a
    watch    /d create delete
    write    /d/x        -> CREATE file /d/x
    write    /d/a/x      ->
    mkdir    /d/b        -> CREATE directory /d/b
    write    /d/b/x      ->
    unlink   /d/x        -> DELETE file /d/x

a single file
    write    /d/x
    write    /d/y
    watch    /d/x modify attrib deleteself
    append   /d/x        -> MODIFY file /d/x
    append   /d/y        ->
    chmod    600 /d/x    -> ATTRIB file /d/x

everything that is done to a file
    watch    /d all
    write    /d/x        -> CREATE file /d/x
                         -> OPEN file /d/x
                         -> MODIFY file /d/x
                         -> CLOSE_WRITE file /d/x
    read     /d/x        -> OPEN file /d/x
                         -> ACCESS file /d/x
                         -> CLOSE_NOWRITE file /d/x
    append   /d/x        -> OPEN file /d/x
                         -> MODIFY file /d/x
                         -> CLOSE_WRITE file /d/x
    chmod    600 /d/x    -> ATTRIB file /d/x
    truncate /d/x        -> MODIFY file /d/x
    rename   /d/x /d/y   -> MOVED_FROM file /d/x
                         -> MOVED_TO file /d/y
    unlink   /d/y        -> DELETE file /d/y

an existing tree is watched at every depth
    makedirs /d/a/b/c
    watch    /d recursive create
    write    /d/x        -> CREATE file /d/x
    write    /d/a/x      -> CREATE file /d/a/x
    write    /d/a/b/c/x  -> CREATE file /d/a/b/c/x
    write    /e/x        ->

a directory reports both as the watched one and as an entry of its parent
    makedirs /d/a
    watch    /d recursive attrib
    chmod    700 /d/a    ~> ATTRIB directory /d/a
                         -> ATTRIB directory /d/a
    chmod    700 /d      -> ATTRIB directory /d

one's own walk is not reported
    makedirs /d/a/b
    write    /d/a/x
    watch    /d recursive all
    mkdir    /d/c        -> CREATE directory /d/c
    write    /d/c/x      -> CREATE file /d/c/x
                         -> OPEN file /d/c/x
                         -> MODIFY file /d/c/x
                         -> CLOSE_WRITE file /d/c/x

one's own walk is not reported to another watch of the same tree
    makedirs /d/a/b
    watch    /d recursive all as=one
    watch    /d recursive all as=two
    watch    /d/a recursive open close access as=three

what others read is reported
    makedirs /d/a
    watch    /d recursive open access closenowrite
    listdir  /d/a        ~> OPEN directory /d/a
                         -> OPEN directory /d/a
                         -> ACCESS directory /d/a
                         -> ACCESS directory /d/a
                         -> ACCESS directory /d/a
                         -> ACCESS directory /d/a
                         -> CLOSE_NOWRITE directory /d/a
                         -> CLOSE_NOWRITE directory /d/a

a missing path and one that is there
    watch    /d/no /d create -> ENOENT /d/no
    write    /d/x        -> CREATE file /d/x

only what was asked for
    watch    /d recursive delete
    makedirs /d/a/b      ->
    write    /d/a/b/x    ->
    unlink   /d/a/b/x    -> DELETE file /d/a/b/x
    rmtree   /d/a        -> DELETE directory /d/a/b
                         -> DELETE directory /d/a

an ended watch is silent
    watch    /d recursive create
    unwatch
    write    /d/x        ->

the root of the container has no double slash
    watch    / recursive create
    write    /x          -> CREATE file /x
    write    /d/x        -> CREATE file /d/x
    mkdir    /a          -> CREATE directory /a
    write    /a/x        -> CREATE file /a/x
"""

NEW_DIRECTORIES = r"""
a new directory is watched at once
    watch    /d recursive create
    mkdir    /d/a        -> CREATE directory /d/a
    write    /d/a/x      -> CREATE file /d/a/x
    mkdir    /d/a/b      -> CREATE directory /d/a/b
    write    /d/a/b/x    -> CREATE file /d/a/b/x

what was made before the watch stood is reported once
    watch    /d recursive create
    makedirs /d/a/b/c/e/f -> CREATE directory /d/a
                         -> CREATE directory /d/a/b
                         -> CREATE directory /d/a/b/c
                         -> CREATE directory /d/a/b/c/e
                         -> CREATE directory /d/a/b/c/e/f
    write    /d/a/b/c/e/f/x -> CREATE file /d/a/b/c/e/f/x

a tree that is copied in
    makedirs /e/a/b
    write    /e/a/x
    write    /e/a/b/y
    write    /e/a/b/z
    watch    /d recursive create
    copytree /e/a /d/a   ~> CREATE directory /d/a
                         -> CREATE directory /d/a/b
                         -> CREATE file /d/a/x
                         -> CREATE file /d/a/b/y
                         -> CREATE file /d/a/b/z
    append   /d/a/x      ->
    write    /d/a/b/w    -> CREATE file /d/a/b/w

new directories are watched whatever was asked for
    watch    /d recursive modify
    makedirs /d/a/b/c    ->
    touch    /d/a/b/c/x  ->
    append   /d/a/b/c/x  -> MODIFY file /d/a/b/c/x

a tree that comes and goes, and comes again
    watch    /d recursive create deleteself
    makedirs /d/a/b      -> CREATE directory /d/a
                         -> CREATE directory /d/a/b
    rmtree   /d/a        -> DELETE_SELF file /d/a/b
                         -> DELETE_SELF file /d/a
    makedirs /d/a/b      -> CREATE directory /d/a
                         -> CREATE directory /d/a/b
    write    /d/a/b/x    -> CREATE file /d/a/b/x

a directory is replaced by a file, and comes back
    watch    /d recursive create delete
    mkdir    /d/a        -> CREATE directory /d/a
    rmdir    /d/a        -> DELETE directory /d/a
    write    /d/a        -> CREATE file /d/a
    unlink   /d/a        -> DELETE file /d/a
    mkdir    /d/a        -> CREATE directory /d/a
    write    /d/a/x      -> CREATE file /d/a/x

a directory that somebody holds open is removed
    mkdir    /d/a
    watch    /d recursive create delete deleteself
    hold     /d/a
    rmdir    /d/a        -> DELETE directory /d/a
    mkdir    /d/a        -> CREATE directory /d/a
    write    /d/a/x      -> CREATE file /d/a/x
    release  /d/a        -> DELETE_SELF file /d/a
    write    /d/a/y      -> CREATE file /d/a/y

a directory that somebody holds open is removed and made again, and its removal is not asked for
    makedirs /d/a/b
    watch    /d recursive create
    hold     /d/a
    rmtree   /d/a ; makedirs /d/a/c ; write /d/a/c/x -> CREATE directory /d/a
                         -> CREATE directory /d/a/c
                         -> CREATE file /d/a/c/x
    release  /d/a        ->
    write    /d/a/y      -> CREATE file /d/a/y
    mkdir    /d/a/b      -> CREATE directory /d/a/b
    write    /d/a/b/y    -> CREATE file /d/a/b/y

a file name of 255 bytes, and odd ones
    watch    /d recursive create
    mkdir    /d/<255>    -> CREATE directory /d/<255>
    write    /d/<255>/<255> -> CREATE file /d/<255>/<255>
    mkdir    /d/a\x0ab   -> CREATE directory /d/a\nb
    write    /d/a\x0ab/\xff\x1b -> CREATE file /d/a\nb/\xff\x1b
    write    /d/\xc3\xa4 -> CREATE file /d/ä
    mkdir    /d/\x20b    -> CREATE directory /d/ b
    write    /d/\x20b/x  -> CREATE file /d/ b/x
"""

MOVES = r"""
a directory moved out of the tree goes quiet
    watch    /d recursive create movedfrom
    mkdir    /d/a        -> CREATE directory /d/a
    write    /d/a/x      -> CREATE file /d/a/x
    rename   /d/a /out   -> MOVED_FROM directory /d/a
    write    /out/y      ->

what is below a directory moved out goes quiet as well
    makedirs /d/a/b/c
    watch    /d recursive create
    rename   /d/a /out   ->
    write    /out/b/c/y  ->
    mkdir    /d/a        -> CREATE directory /d/a
    write    /d/a/x      -> CREATE file /d/a/x

a directory moved inside the tree keeps its watches and takes its new path
    makedirs /d/a/b
    mkdir    /d/c
    watch    /d recursive create move
    rename   /d/a /d/c/z -> MOVED_FROM directory /d/a
                         -> MOVED_TO directory /d/c/z
    write    /d/c/z/x    -> CREATE file /d/c/z/x
    write    /d/c/z/b/x  -> CREATE file /d/c/z/b/x
    mkdir    /d/a        -> CREATE directory /d/a
    write    /d/a/x      -> CREATE file /d/a/x

a directory moved onto an empty one
    mkdir    /d/a
    mkdir    /d/b
    watch    /d recursive create move deleteself
    rename   /d/a /d/b   -> MOVED_FROM directory /d/a
                         -> MOVED_TO directory /d/b
                         -> DELETE_SELF file /d/b
    write    /d/b/x      -> CREATE file /d/b/x

there and back again
    makedirs /d/a/b
    watch    /d recursive create
    rename   /d/a /out
    write    /out/b/x    ->
    rename   /out /d/a   ->
    write    /d/a/b/y    -> CREATE file /d/a/b/y

a directory moved in is watched with everything below
    makedirs /e/a/b
    write    /e/a/b/x
    watch    /d recursive create movedto
    rename   /e/a /d/a   ~> MOVED_TO directory /d/a
    write    /d/a/y      -> CREATE file /d/a/y
    write    /d/a/b/y    -> CREATE file /d/a/b/y

two directories are exchanged
    makedirs /d/a/one
    makedirs /d/b/two
    watch    /d recursive create
    exchange /d/a /d/b   ->
    write    /d/a/x      -> CREATE file /d/a/x
    write    /d/a/two/x  -> CREATE file /d/a/two/x
    write    /d/b/one/x  -> CREATE file /d/b/one/x

a directory is exchanged with one outside
    makedirs /d/a/one
    makedirs /e/b/two
    watch    /d recursive create
    exchange /d/a /e/b   ->
    write    /d/a/x      -> CREATE file /d/a/x
    write    /d/a/two/x  -> CREATE file /d/a/two/x
    write    /e/b/one/x  ->

a directory is exchanged with a file
    makedirs /d/a/one
    write    /d/f
    watch    /d recursive create
    exchange /d/a /d/f   ->
    write    /d/f/one/x  -> CREATE file /d/f/one/x
    append   /d/a        ->

a new directory is renamed at once
    watch    /d recursive create
    mkdir    /d/a        -> CREATE directory /d/a
    rename   /d/a /d/b   ->
    write    /d/b/x      -> CREATE file /d/b/x
    rename   /d/b /d/c   ->
    write    /d/c/y      -> CREATE file /d/c/y

a new directory is moved before it could be watched
    mkdir    /d/z
    watch    /d recursive create
    mkdir    /d/a ; rename /d/a /d/b ; rename /d/b /d/z/c -> CREATE directory /d/a
    write    /d/z/c/x    -> CREATE file /d/z/c/x

a new directory is removed before it could be watched
    watch    /d recursive create delete
    mkdir    /d/a ; rmdir /d/a -> CREATE directory /d/a
                         -> DELETE directory /d/a
    mkdir    /d/a ; rmdir /d/a ; mkdir /d/a -> CREATE directory /d/a
                         -> DELETE directory /d/a
                         -> CREATE directory /d/a
    write    /d/a/x      -> CREATE file /d/a/x

a new tree is moved out before it could be watched
    watch    /d recursive create
    mkdir    /d/a ; rename /d/a /out -> CREATE directory /d/a
    write    /out/x      ->

moves between two trees
    mkdir    /d/a
    watch    /d recursive create as=d
    watch    /e recursive create as=e
    rename   /d/a /e/a   ->
    write    /e/a/x      -> e: CREATE file /e/a/x
    rename   /e/a /d/b   ->
    write    /d/b/y      -> d: CREATE file /d/b/y

files that move
    write    /e/in
    watch    /d recursive create move
    rename   /e/in /d/x  -> MOVED_TO file /d/x
    rename   /d/x /d/y   -> MOVED_FROM file /d/x
                         -> MOVED_TO file /d/y
    rename   /d/y /e/out -> MOVED_FROM file /d/y

a directory that moves says so itself
    mkdir    /d/a
    watch    /d recursive moveself
    rename   /d/a /d/b   -> MOVE_SELF file /d/b

a parent directory moves, and the ones below take the new path
    makedirs /d/a/b/c
    watch    /d recursive create
    rename   /d/a /d/z
    rename   /d/z/b /d/y
    write    /d/y/c/x    -> CREATE file /d/y/c/x
"""

LIMITS = r"""
maxDepth counts the subject path as 1
    makedirs /d/a/b
    watch    /d recursive create maxDepth=2
    write    /d/x        -> CREATE file /d/x
    write    /d/a/x      -> CREATE file /d/a/x
    write    /d/a/b/x    ->

maxDepth 1 is the subject path alone
    mkdir    /d/a
    watch    /d recursive create maxDepth=1
    write    /d/a/x      ->
    mkdir    /d/b        -> CREATE directory /d/b
    write    /d/b/x      ->

maxDepth holds for directories that appear
    watch    /d recursive create maxDepth=2
    mkdir    /d/a        -> CREATE directory /d/a
    mkdir    /d/a/b      -> CREATE directory /d/a/b
    write    /d/a/b/x    ->

maxDepth holds for directories that are moved
    makedirs /d/a/b
    mkdir    /d/c
    watch    /d recursive create maxDepth=3
    write    /d/a/b/x    -> CREATE file /d/a/b/x
    rename   /d/a /d/c/a ->
    write    /d/c/a/x    -> CREATE file /d/c/a/x
    write    /d/c/a/b/y  ->
    rename   /d/c/a /d/a ->
    write    /d/a/b/z    -> CREATE file /d/a/b/z

maxDepth holds for directories that are moved in
    makedirs /e/a/b
    watch    /d recursive create maxDepth=2
    rename   /e/a /d/a   ->
    write    /d/a/x      -> CREATE file /d/a/x
    write    /d/a/b/x    ->

maxDepth means nothing without recursive
    watch    /d create maxDepth=1
    write    /d/x        -> CREATE file /d/x

an ignored directory is not watched, nor what is below
    makedirs /d/no/a
    makedirs /d/a/no/b
    watch    /d recursive create ignore=no,nix
    write    /d/no/x     ->
    write    /d/no/a/x   ->
    write    /d/a/x      -> CREATE file /d/a/x
    write    /d/a/no/x   ->
    write    /d/a/no/b/x ->

an ignored directory that appears
    watch    /d recursive create ignore=no,nix
    mkdir    /d/nix      -> CREATE directory /d/nix
    makedirs /d/nix/a    ->
    write    /d/nix/a/x  ->
    mkdir    /d/nixon    -> CREATE directory /d/nixon
    write    /d/nixon/x  -> CREATE file /d/nixon/x

ignored names filter no files
    watch    /d recursive create ignore=no
    write    /d/no       -> CREATE file /d/no

a subject path that is ignored itself
    mkdir    /d/no
    mkdir    /d/a
    watch    /d/no /d/a recursive create ignore=no
    write    /d/no/x     ->
    write    /d/a/x      -> CREATE file /d/a/x

ignore means nothing without recursive
    mkdir    /d/no
    watch    /d/no create ignore=no
    write    /d/no/x     -> CREATE file /d/no/x

a directory renamed to an ignored name and back
    makedirs /d/a/b
    watch    /d recursive create ignore=no
    rename   /d/a /d/no  ->
    write    /d/no/x     ->
    write    /d/no/b/x   ->
    rename   /d/no /d/a  ->
    write    /d/a/x2     -> CREATE file /d/a/x2
    write    /d/a/b/x2   -> CREATE file /d/a/b/x2

onlyDir leaves out what is no directory
    write    /d/x
    mkdir    /d/a
    symlink  x /d/l
    watch    /d/x /d/l /d/a onlyDir create modify -> ENOTDIR /d/x
                         -> ENOTDIR /d/l
    append   /d/x        ->
    write    /d/a/y      -> CREATE file /d/a/y
                         -> MODIFY file /d/a/y

onlyDir with a link to a directory
    symlink  /e /d/l
    watch    /d/l onlyDir create
    write    /e/x        -> CREATE file /d/l/x
"""

LINKS = r"""
a link never leads out of the container's root
    symlink  /etc /d/l
    symlink  ../../../../../../../../../../etc /d/m
    mkdir    /etc
    watch    /d/l/no /d/m/no /d/l create -> ENOENT /d/l/no
                         -> ENOENT /d/m/no
    write    /etc/x      -> CREATE file /d/l/x

symbolic links below are not followed
    mkdir    /e/a
    symlink  /e /d/l
    watch    /d recursive create
    write    /e/x        ->
    write    /e/a/x      ->
    symlink  /e /d/m     -> CREATE file /d/m
    write    /e/y        ->

a subject path that is an absolute link
    mkdir    /e/a
    symlink  /e /d/l
    watch    /d/l recursive create
    write    /e/x        -> CREATE file /d/l/x
    write    /e/a/x      -> CREATE file /d/l/a/x

a subject path that is a relative link
    mkdir    /e/a
    symlink  ../e /d/l
    watch    /d/l recursive create
    write    /e/a/x      -> CREATE file /d/l/a/x
    mkdir    /e/b        -> CREATE directory /d/l/b
    write    /e/b/x      -> CREATE file /d/l/b/x

a subject path that passes through links
    makedirs /e/a/b
    symlink  ../e/a /d/l
    symlink  d /k
    watch    /k/l/b recursive create
    write    /e/a/b/x    -> CREATE file /k/l/b/x

a link that leads nowhere, and one that leads to itself
    symlink  no /d/l
    symlink  o /d/o
    watch    /d/l /d/o create -> ENOENT /d/l
                         -> ELOOP /d/o

two names of one file in two watches
    write    /d/x
    link     /d/x /d/y
    watch    /d/x modify as=one
    watch    /d/y modify as=two
    append   /d/x        -> one: MODIFY file /d/x
                         -> two: MODIFY file /d/y
"""

MANY = r"""
two watches on one tree report on their own
    mkdir    /d/a
    watch    /d recursive create as=one
    watch    /d recursive create delete maxDepth=1 as=two
    write    /d/x        -> one: CREATE file /d/x
                         -> two: CREATE file /d/x
    write    /d/a/x      -> one: CREATE file /d/a/x
    unlink   /d/x        -> two: DELETE file /d/x
    makedirs /d/b/c      -> one: CREATE directory /d/b
                         -> one: CREATE directory /d/b/c
                         -> two: CREATE directory /d/b
    unwatch  one
    write    /d/y        -> two: CREATE file /d/y
    write    /d/b/c/y    ->
    unwatch  two
    write    /d/z        ->

a second watch that asks for other events
    mkdir    /d/a
    watch    /d recursive create as=one
    watch    /d recursive modify as=two
    write    /d/a/x      -> one: CREATE file /d/a/x
                         -> two: MODIFY file /d/a/x
    unwatch  one
    append   /d/a/x      -> two: MODIFY file /d/a/x
    watch    /d recursive attrib as=one
    chmod    600 /d/a/x  -> one: ATTRIB file /d/a/x

overlapping paths of one subject report once
    makedirs /d/a/b
    watch    /d /d/a recursive create
    write    /d/x        -> CREATE file /d/x
    write    /d/a/x      -> CREATE file /d/a/x
    write    /d/a/b/x    -> CREATE file /d/a/b/x
    mkdir    /d/a/c      -> CREATE directory /d/a/c
    write    /d/a/c/x    -> CREATE file /d/a/c/x

overlapping watches of two subjects report each
    makedirs /d/a/b
    watch    /d recursive create as=one
    watch    /d/a/b recursive create as=two
    write    /d/a/b/x    -> one: CREATE file /d/a/b/x
                         -> two: CREATE file /d/a/b/x
"""

MOUNTS = r"""
a file system that is mounted below is followed
    mkdir    /d/m
    mount    /d/m
    mkdir    /d/m/a
    watch    /d recursive create
    write    /d/m/x      -> CREATE file /d/m/x
    write    /d/m/a/x    -> CREATE file /d/m/a/x
    mkdir    /d/m/b      -> CREATE directory /d/m/b
    write    /d/m/b/x    -> CREATE file /d/m/b/x

the rest stays when a file system is unmounted
    mkdir    /d/m
    mkdir    /d/a
    mount    /d/m
    mkdir    /d/m/a
    watch    /d recursive create deleteself
    umount   /d/m        ->
    write    /d/x        -> CREATE file /d/x
    write    /d/a/x      -> CREATE file /d/a/x

a subject path that is a mount point can be unmounted at once
    mkdir    /d/m
    mount    /d/m
    makedirs /d/m/a/b
    watch    /d/m recursive create
    umount   /d/m        ->

a directory that is bound into itself is told under its own name
    makedirs /d/a/b
    bind     /d/a /d/a/b
    watch    /d recursive create deleteself
    write    /d/a/b/x    -> CREATE file /d/a/x
    umount   /d/a/b      ->
    write    /d/a/y      -> CREATE file /d/a/y

new directories do not keep a file system busy
    mkdir    /d/m
    mount    /d/m
    watch    /d recursive create
    makedirs /d/m/a/b    -> CREATE directory /d/m/a
                         -> CREATE directory /d/m/a/b
    umount   /d/m        ->
"""

STORIES = parse(RECURSION + NEW_DIRECTORIES + MOVES + LIMITS + LINKS + MANY + MOUNTS)


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.title.replace(" ", "_"))
def test_story(stage: Stage, story: Story) -> None:
    stage.play(story)


def test_two_names_of_one_file_in_one_subject_report_once(stage: Stage) -> None:
    stage.world.operations["touch"]("/d/x")
    stage.world.operations["link"]("/d/x", "/d/y")
    stage.watching.watch("one", [b"/d/x", b"/d/y"], EVENTS["MODIFY"])
    for name in ("/d/x", "/d/y"):
        stage.world.operations["append"](name)
        (line,) = stage.watching.lines()
        assert line in {"one: MODIFY file /d/x", "one: MODIFY file /d/y"}


@pytest.mark.parametrize("seed", range(8))
def test_after_any_storm_every_directory_is_watched_under_its_path(stage: Stage, seed: int) -> None:
    random = Random(seed)
    top, outside = stage.world.path("/d"), stage.world.path("/e")
    stage.watching.watch("-", [b"/d"], EVENTS["CREATE"], recursive=True)
    for number in range(300):
        storm(random, top, outside, number)
    stage.watching.lines()
    folders = [Path(name) for name, _, _ in os.walk(top)]
    for folder in [*folders, *(Path(name) for name, _, _ in os.walk(outside))]:
        (folder / "mark").touch()
    expected = sorted(f"-: CREATE file {folder.relative_to(stage.world.root).as_posix()}/mark" for folder in folders)
    assert sorted(line.replace(" file /", " file ") for line in stage.watching.lines()) == expected


def storm(random: Random, top: Path, outside: Path, number: int) -> None:
    """Do one thing to two trees of directories."""
    inside = [Path(name) for name, _, _ in os.walk(top)]
    beyond = [Path(name) for name, _, _ in os.walk(outside)]
    one, other, deed = random.choice(inside), random.choice(inside + beyond), random.randrange(8)
    if deed <= 2:
        one.joinpath(*(f"{number}.{depth}" for depth in range(random.randrange(1, 5)))).mkdir(parents=True)
    elif deed == 3:
        (other / f"{number}").mkdir()
    elif deed == 4 and one != top and random.randrange(2):
        shutil.rmtree(one)
    elif one not in {other, *other.parents} and one != top:
        destination = other / f"{number}"
        if deed == 5 and other not in {top, outside, *one.parents}:
            exchange(one, other)
        else:
            one.rename(destination)
    elif other in beyond and other != outside:
        other.rename(random.choice(inside) / f"{number}")


def test_every_title_is_told_once() -> None:
    titles = [story.title for story in STORIES]
    assert sorted(titles) == sorted(set(titles))
