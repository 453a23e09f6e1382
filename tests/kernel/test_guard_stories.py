"""What guards refuse and tell, on the real kernel, through both ways into a container."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.container import Way
from tests.kernel.guarding import GuardStage
from tests.kernel.story import Story, parse

STORIES = r"""
a denied file cannot be opened
    write      /d/f
    guard      deny=/d/f
    open       /d/f          -> EPERM
                             -> DENY OPEN_PERM file /d/f
    open_to_write /d/f       -> EPERM
                             -> DENY OPEN_PERM file /d/f
    map        /d/f          -> EPERM
                             -> DENY OPEN_PERM file /d/f
    unguard
    open       /d/f

an allowed file is told of
    write      /d/f
    guard      allow=/d/f
    open       /d/f          -> ALLOW OPEN_PERM file /d/f
    host open  /d/f          -> ALLOW OPEN_PERM file /d/f

the host's processes are refused too, and the path is the container's
    write      /d/f
    write      /e/g
    guard      deny=/d/f,/e
    host open  /d/f          -> EPERM
                             -> DENY OPEN_PERM file /d/f
    host open  /e/g          -> EPERM
                             -> DENY OPEN_PERM file /e/g
    host list  /e            -> EPERM
                             -> DENY OPEN_PERM directory /e

a directory is guarded with its direct children
    makedirs   /d/sub/deep
    write      /d/f
    write      /d/sub/g
    guard      deny=/d
    list       /d            -> EPERM
                             -> DENY OPEN_PERM directory /d
    open       /d/f          -> EPERM
                             -> DENY OPEN_PERM file /d/f
    list       /d/sub        -> EPERM
                             -> DENY OPEN_PERM directory /d/sub
    open       /d/sub/g
    list       /d/sub/deep
    open_to_create /d/new    -> EPERM
                             -> DENY OPEN_PERM file /d/new

what is no open is no permission event
    write      /d/f
    guard      deny=/d
    stat       /d/f
    open_path  /d/f
    in rename  /d/f /d/g
    in link    /d/g /d/h
    in mkdir   /d/sub
    in rmdir   /d/sub
    in unlink  /d/h

reading is guarded apart from opening
    write      /d/f
    guard      deny=/d/f event=access
    open       /d/f
    open_to_write /d/f
    read       /d/f          -> EPERM
                             -> DENY ACCESS_PERM file /d/f

opening and reading are told of both
    write      /d/f
    guard      allow=/d event=open,access
    read       /d/f          -> ALLOW OPEN_PERM file /d/f
                             -> ALLOW ACCESS_PERM file /d/f
    list       /d            -> ALLOW OPEN_PERM directory /d
                             -> ALLOW ACCESS_PERM directory /d
                             -> ALLOW ACCESS_PERM directory /d

a program that is denied cannot be executed
    write      /d/run
    chmod      755 /d/run
    guard      deny=/d/run
    exec       /d/run        -> EPERM
                             -> DENY OPEN_PERM file /d/run

deny beats allow in one subject
    write      /d/f
    write      /d/g
    guard      deny=/d/f allow=/d
    open       /d/f          -> EPERM
                             -> DENY OPEN_PERM file /d/f
    open       /d/g          -> ALLOW OPEN_PERM file /d/g

a denied directory beats an allowed file in it
    write      /d/f
    guard      deny=/d allow=/d/f
    open       /d/f          -> EPERM
                             -> DENY OPEN_PERM file /d/f

deny beats allow among subjects, and each tells the answer
    write      /d/f
    guard      allow=/d/f as=one
    guard      deny=/d as=two
    open       /d/f          -> EPERM
                             -> one: DENY OPEN_PERM file /d/f
                             -> two: DENY OPEN_PERM file /d/f
    unguard    two
    open       /d/f          -> one: ALLOW OPEN_PERM file /d/f

a file that is renamed over a guarded one is guarded at once
    write      /d/f
    write      /d/new
    guard      deny=/d/f
    in rename  /d/new /d/f; open /d/f -> EPERM
                             -> DENY OPEN_PERM file /d/f
    open       /d/f          -> EPERM
                             -> DENY OPEN_PERM file /d/f

a guarded file that is deleted and made again is guarded at once
    write      /d/f
    write      /d/g
    guard      deny=/d/f
    in unlink  /d/f; open_to_create /d/f; open /d/f -> EPERM
                             -> EPERM
                             -> DENY OPEN_PERM file /d/f
                             -> DENY OPEN_PERM file /d/f
    open       /d/g

a missing file is guarded from its first moment
    guard      deny=/d/f     -> ENOENT /d/f
    open_to_create /d/f; open /d/f -> EPERM
                             -> EPERM
                             -> DENY OPEN_PERM file /d/f
                             -> DENY OPEN_PERM file /d/f

a path of which more is missing is guarded when it is there
    guard      deny=/d/a/b/f -> ENOENT /d/a/b/f
    makedirs   /d/a/b
    write      /d/a/b/f
    open       /d/a/b/f      -> EPERM
                             -> DENY OPEN_PERM file /d/a/b/f

a guarded directory that is replaced is guarded again
    makedirs   /d/a
    makedirs   /d/b
    write      /d/a/f
    write      /d/b/g
    guard      deny=/d/a
    rename     /d/a /d/old
    open       /d/old/f
    rename     /d/b /d/a
    open       /d/a/g        -> EPERM
                             -> DENY OPEN_PERM file /d/a/g
    open       /d/old/f

a file that is moved away is guarded no more
    write      /d/f
    guard      deny=/d/f
    rename     /d/f /d/g
    open       /d/g
    open       /d/g

another name of a guarded file is guarded
    write      /d/f
    link       /d/f /e/other
    guard      deny=/d/f
    open       /e/other      -> EPERM
                             -> DENY OPEN_PERM file /d/f

a path through a link is told as it was given
    write      /d/f
    write      /e/f
    symlink    /d /link
    guard      deny=/link/f
    open       /d/f          -> EPERM
                             -> DENY OPEN_PERM file /link/f
    repoint    /e /link
    open       /d/f
    open       /e/f          -> EPERM
                             -> DENY OPEN_PERM file /link/f

a link never leads out of the container
    symlink    /../../../../etc /link
    guard      deny=/link    -> ENOENT /link

onlyDir leaves files out
    write      /d/f
    guard      deny=/d/f,/e onlyDir -> ENOTDIR /d/f
    open       /d/f
    list       /e            -> EPERM
                             -> DENY OPEN_PERM directory /e

the owner and its children are always allowed
    write      /d/f
    guard      deny=/d autoAllowOwner
    open       /d/f          -> EPERM
                             -> DENY OPEN_PERM file /d/f
    init open  /d/f          -> ALLOW OPEN_PERM file /d/f
    child open /d/f          -> ALLOW OPEN_PERM file /d/f
    grandchild open /d/f     -> EPERM
                             -> DENY OPEN_PERM file /d/f
    init list  /d            -> ALLOW OPEN_PERM directory /d
    host open  /d/f          -> EPERM
                             -> DENY OPEN_PERM file /d/f

the owner is known by any name
    write      /d/f
    guard      deny=/d autoAllowOwner
    init name  )\x20R\x201\x20(
    init open  /d/f          -> ALLOW OPEN_PERM file /d/f
    child open /d/f          -> ALLOW OPEN_PERM file /d/f
    grandchild open /d/f     -> EPERM
                             -> DENY OPEN_PERM file /d/f

the owner of one guard is nobody to another
    write      /d/f
    guard      deny=/d autoAllowOwner as=one
    guard      deny=/d/f as=two
    init open  /d/f          -> EPERM
                             -> two: DENY OPEN_PERM file /d/f
                             -> one: DENY OPEN_PERM file /d/f
    unguard    two
    init open  /d/f          -> one: ALLOW OPEN_PERM file /d/f

beside a guarded file all is as before
    write      /d/f
    write      /d/g
    guard      deny=/d/f
    open       /d/g
    list       /d
    open_to_create /d/h

a name that holds a line is told as one line
    write      /d/a\x0aI1122_forged
    guard      deny=/d
    open       /d/a\x0aI1122_forged -> EPERM
                             -> DENY OPEN_PERM file /d/a\nI1122_forged

names of the greatest length are told in full
    makedirs   /d/<255>
    write      /d/<255>/<255>
    guard      deny=/d/<255>
    open       /d/<255>/<255> -> EPERM
                             -> DENY OPEN_PERM file /d/<255>/<255>

a pipe in a guarded directory holds nobody up
    mkfifo     /d/p
    write      /d/f
    guard      deny=/d
    open       /d/p
    open       /d/f          -> EPERM
                             -> DENY OPEN_PERM file /d/f

the root itself can be guarded
    write      /f
    guard      deny=/
    open       /f            -> EPERM
                             -> DENY OPEN_PERM file /f
    list       /             -> EPERM
                             -> DENY OPEN_PERM directory /
    list       /d            -> EPERM
                             -> DENY OPEN_PERM directory /d

a process in a root of its own is refused too
    makedirs   /d/a
    write      /d/a/f
    guard      deny=/d/a
    in chroot  /d
    open       /a/f          -> EPERM
                             -> DENY OPEN_PERM file /d/a/f

the host lists an allowed directory beside a denied one
    makedirs   /d/opened
    makedirs   /d/closed
    guard      deny=/d/closed allow=/d/opened
    through list /d/opened   -> ALLOW OPEN_PERM directory /d/opened
    through list /d/closed   -> EPERM
                             -> DENY OPEN_PERM directory /d/closed

a process with mounts of its own is refused too
    makedirs   /d/a
    write      /d/a/f
    write      /d/g
    guard      deny=/d/a allow=/d/g
    in unshare -
    open       /d/a/f        -> EPERM
                             -> DENY OPEN_PERM file /d/a/f
    open       /d/g          -> ALLOW OPEN_PERM file /d/g
"""


@pytest.fixture(params=[Way.OPENAT2, Way.SETNS], ids=lambda way: way.value)
def guard_stage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[GuardStage]:
    stage = GuardStage(tmp_path, request.param)
    yield stage
    stage.close()


@pytest.mark.parametrize("story", parse(STORIES), ids=lambda story: story.title.replace(" ", "_"))
def test_story(guard_stage: GuardStage, story: Story) -> None:
    guard_stage.play(story)


@pytest.mark.parametrize("refused", ["pidfd_open=EPERM", "ioctl=ENOTTY"])
def test_owner_is_known_where_pidfds_are_of_no_use(refused: str) -> None:
    """An old seccomp profile answers EPERM, an old kernel ENOTTY; the parent of a process is read from /proc then."""
    pytest_again = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "the_owner"]
    command = [sys.executable, "-m", "tests.restricted", refused, "--", *pytest_again]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout
