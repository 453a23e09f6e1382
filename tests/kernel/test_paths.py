"""A subject path is a place: what is reported when it comes, goes, or comes to stand for another file."""

from __future__ import annotations

import os

import pytest

from argusd._inotify import EVENTS
from tests.kernel.story import Stage, Story, parse

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="needs root: stories have a root of their own and mount file systems"
)
# A file is made with ``touch`` where it becomes a subject path: what is written to it right after it was made may come
# before or after it is watched, and then is a MODIFY of its own.
MISSING = r"""
a file that is missing
    watch    /d/f create modify deleteself -> ENOENT /d/f
    write    /d/g        ->
    touch    /d/f        -> CREATE file /d/f
                         -> MODIFY file /d/f
    append   /d/f        -> MODIFY file /d/f
    unlink   /d/f        -> DELETE_SELF file /d/f

a directory that is missing
    watch    /d/a create modify -> ENOENT /d/a
    mkdir    /d/a        -> CREATE directory /d/a
                         -> MODIFY directory /d/a
    write    /d/a/x      -> CREATE file /d/a/x
                         -> MODIFY file /d/a/x

a missing path is reported only as asked for
    watch    /d/a /d/f attrib delete -> ENOENT /d/a
                         -> ENOENT /d/f
    mkdir    /d/a        ->
    write    /d/f        ->
    chmod    600 /d/f    -> ATTRIB file /d/f
    chmod    700 /d/a    -> ATTRIB directory /d/a

a path of which several ancestors are missing
    watch    /d/a/b/c/f create modify -> ENOENT /d/a/b/c/f
    mkdir    /d/a        ->
    write    /d/a/f      ->
    mkdir    /d/a/b      ->
    mkdir    /d/a/b/c    ->
    touch    /d/a/b/c/f  -> CREATE file /d/a/b/c/f
                         -> MODIFY file /d/a/b/c/f
    append   /d/a/b/c/f  -> MODIFY file /d/a/b/c/f

several missing ancestors and the file, all at once
    watch    /d/a/b/c/f create -> ENOENT /d/a/b/c/f
    makedirs /d/a/b/c ; touch /d/a/b/c/f -> CREATE file /d/a/b/c/f
    chmod    600 /d/a/b/c/f ->
    unlink   /d/a/b/c/f ; touch /d/a/b/c/f -> CREATE file /d/a/b/c/f

a missing directory is searched like a new one
    watch    /d/a/b create -> ENOENT /d/a/b
    makedirs /d/a/b/c ; touch /d/a/b/f ; touch /d/a/b/c/g ~> CREATE directory /d/a/b
                         -> CREATE directory /d/a/b/c
                         -> CREATE file /d/a/b/f
    touch    /d/a/b/h    -> CREATE file /d/a/b/h
    write    /d/a/b/c/h  ->

a missing tree
    watch    /d/a/b recursive create -> ENOENT /d/a/b
    makedirs /d/a/b/c/d ; touch /d/a/b/f ; touch /d/a/b/c/d/g ~> CREATE directory /d/a/b
                         -> CREATE directory /d/a/b/c
                         -> CREATE directory /d/a/b/c/d
                         -> CREATE file /d/a/b/f
                         -> CREATE file /d/a/b/c/d/g
    touch    /d/a/b/c/d/h -> CREATE file /d/a/b/c/d/h

a missing path that is moved in with all that it has
    makedirs /e/a/b/c
    touch    /e/a/b/f
    watch    /d/a/b recursive create modify movedto -> ENOENT /d/a/b
    rename   /e/a /d/a   ~> CREATE directory /d/a/b
                         -> MODIFY directory /d/a/b
                         -> CREATE file /d/a/b/f
                         -> CREATE directory /d/a/b/c
    write    /d/a/b/c/x  -> CREATE file /d/a/b/c/x
                         -> MODIFY file /d/a/b/c/x

a missing path of which an ancestor is a file at first
    write    /d/a
    watch    /d/a/f modify -> ENOTDIR /d/a/f
    unlink   /d/a        ->
    mkdir    /d/a        ->
    touch    /d/a/f      -> MODIFY file /d/a/f

two missing paths of one subject
    watch    /d/a/f /d/a/g create -> ENOENT /d/a/f
                         -> ENOENT /d/a/g
    mkdir    /d/a        ->
    touch    /d/a/g      -> CREATE file /d/a/g
    touch    /d/a/f      -> CREATE file /d/a/f

a missing path and an ended watch
    watch    /d/a create -> ENOENT /d/a
    unwatch
    mkdir    /d/a        ->
    touch    /d/a/x      ->

onlyDir waits for a directory
    watch    /d/a onlyDir create -> ENOENT /d/a
    touch    /d/a        ->
    unlink   /d/a        ->
    mkdir    /d/a        -> CREATE directory /d/a
    touch    /d/a/x      -> CREATE file /d/a/x

onlyDir with a file that becomes a directory and back
    touch    /d/a
    watch    /d/a onlyDir create modify -> ENOTDIR /d/a
    append   /d/a        ->
    unlink   /d/a ; mkdir /d/a -> CREATE directory /d/a
                         -> MODIFY directory /d/a
    touch    /d/a/x      -> CREATE file /d/a/x
    rmtree   /d/a ; touch /d/a ->
    append   /d/a        ->

an ignored name is ignored when it appears as a subject path
    watch    /d/no recursive create ignore=no
    mkdir    /d/no       ->
    touch    /d/no/x     ->
"""

AGAIN = r"""
a file that is deleted and made again
    write    /d/f
    watch    /d/f create modify deleteself
    unlink   /d/f        -> DELETE_SELF file /d/f
    touch    /d/f        -> CREATE file /d/f
                         -> MODIFY file /d/f
    append   /d/f        -> MODIFY file /d/f
    unlink   /d/f ; touch /d/f -> DELETE_SELF file /d/f
                         -> CREATE file /d/f
                         -> MODIFY file /d/f

a directory that is deleted and made again
    makedirs /d/a/b
    watch    /d/a recursive create deleteself
    rmtree   /d/a        -> DELETE_SELF file /d/a/b
                         -> DELETE_SELF file /d/a
    makedirs /d/a/c ; touch /d/a/c/x ~> CREATE directory /d/a
                         -> CREATE directory /d/a/c
                         -> CREATE file /d/a/c/x
    touch    /d/a/c/y    -> CREATE file /d/a/c/y

an ancestor that is deleted and made again
    makedirs /d/a/b
    write    /d/a/b/f
    watch    /d/a/b/f modify deleteself
    rmtree   /d/a        -> DELETE_SELF file /d/a/b/f
    makedirs /d/a/b      ->
    touch    /d/a/b/f    -> MODIFY file /d/a/b/f

an editor that writes a temporary file and renames it
    write    /d/f
    watch    /d/f modify deleteself movedto
    write    /d/f.tmp ; rename /d/f.tmp /d/f -> DELETE_SELF file /d/f
                         -> MOVED_TO file /d/f
                         -> MODIFY file /d/f
    append   /d/f        -> MODIFY file /d/f

an editor that keeps a backup
    write    /d/f
    watch    /d/f create modify moveself
    rename   /d/f /d/f~ ; touch /d/f -> MOVE_SELF file /d/f
                         -> CREATE file /d/f
                         -> MODIFY file /d/f
    append   /d/f~       ->
    append   /d/f        -> MODIFY file /d/f

a package manager that keeps the old file as a link until the new one is there
    write    /d/f
    watch    /d/f modify movedto deleteself
    link     /d/f /d/f.old ; write /d/f.new ; rename /d/f.new /d/f
                         -> MOVED_TO file /d/f
                         -> MODIFY file /d/f
    unlink   /d/f.old    ->
    append   /d/f        -> MODIFY file /d/f

a link is made to a file under the path
    write    /d/x
    watch    /d/f create modify -> ENOENT /d/f
    link     /d/x /d/f   -> CREATE file /d/f
                         -> MODIFY file /d/f
    append   /d/x        -> MODIFY file /d/f

one of a file's names is the path, and goes
    write    /d/f
    link     /d/f /d/g
    watch    /d/f create modify attrib
    unlink   /d/f        -> ATTRIB file /d/f
    append   /d/g        ->
    link     /d/g /d/f   -> CREATE file /d/f
                         -> MODIFY file /d/f
    append   /d/g        -> MODIFY file /d/f

three saves in a row
    write    /d/f
    watch    /d/f movedto
    touch    /d/1 ; rename /d/1 /d/f ; touch /d/2 ; rename /d/2 /d/f ; touch /d/3 ; rename /d/3 /d/f
                         -> MOVED_TO file /d/f
                         -> MOVED_TO file /d/f
                         -> MOVED_TO file /d/f

a directory is replaced by a file and back
    makedirs /d/a/b
    watch    /d/a recursive create modify
    rmtree   /d/a ; touch /d/a -> CREATE file /d/a
                         -> MODIFY file /d/a
    append   /d/a        -> MODIFY file /d/a
    unlink   /d/a ; mkdir /d/a -> CREATE directory /d/a
                         -> MODIFY directory /d/a
    touch    /d/a/x      -> CREATE file /d/a/x

a file that is replaced, and lives on under another name
    write    /d/f
    watch    /d/f modify attrib create movedto moveself deleteself
    link     /d/f /d/f.bak      -> ATTRIB file /d/f
    write    /d/new
    rename   /d/new /d/f        -> ATTRIB file /d/f
                                -> MOVED_TO file /d/f
                                -> MODIFY file /d/f
    chmod    600 /d/f.bak       ->
    rename   /d/f.bak /d/f.old  ->
    unlink   /d/f.old           ->
    append   /d/f               -> MODIFY file /d/f

a file that is removed, and lives on under another name
    write    /d/f
    watch    /d/f attrib moveself deleteself
    link     /d/f /d/f.bak      -> ATTRIB file /d/f
    unlink   /d/f               -> ATTRIB file /d/f
    rename   /d/f.bak /d/f.old  ->
    unlink   /d/f.old           ->

a directory is replaced by another one
    makedirs /d/a/b
    makedirs /d/new/c
    touch    /d/new/x
    watch    /d/a recursive create modify movedto
    rename   /d/a /d/old ; rename /d/new /d/a ~> MOVED_TO directory /d/a
                         -> MODIFY directory /d/a
                         -> CREATE file /d/a/x
                         -> CREATE directory /d/a/c
    touch    /d/a/c/x    -> CREATE file /d/a/c/x
    touch    /d/old/b/x  ->

the path is exchanged with another file
    write    /d/f
    write    /d/g
    watch    /d/f modify movedto moveself
    exchange /d/f /d/g   -> MOVE_SELF file /d/f
                         -> MOVED_TO file /d/f
                         -> MODIFY file /d/f
    append   /d/g        ->
    append   /d/f        -> MODIFY file /d/f

two paths of one subject are exchanged
    write    /d/f
    write    /d/g
    watch    /d/f /d/g modify
    exchange /d/f /d/g   ~> MODIFY file /d/f
                         -> MODIFY file /d/g
    append   /d/f        -> MODIFY file /d/f
    append   /d/g        -> MODIFY file /d/g

the path of one subject is an entry of its other path
    write    /d/f
    watch    /d /d/f create modify
    append   /d/f        -> MODIFY file /d/f
                         -> MODIFY file /d/f
    unlink   /d/f ; touch /d/f ~> CREATE file /d/f
                         -> CREATE file /d/f
                         -> MODIFY file /d/f
    append   /d/f        -> MODIFY file /d/f
                         -> MODIFY file /d/f

two watches of one path
    write    /d/f
    watch    /d/f modify as=one
    watch    /d/f movedto as=two
    write    /d/g ; rename /d/g /d/f -> one: MODIFY file /d/f
                         -> two: MOVED_TO file /d/f
    append   /d/f        -> one: MODIFY file /d/f
    unwatch  one
    write    /d/g ; rename /d/g /d/f -> two: MOVED_TO file /d/f
    append   /d/f        ->

a path below another subject path reports once for each
    watch    /d recursive create as=one
    watch    /d/a create as=two -> ENOENT /d/a
    mkdir    /d/a        -> one: CREATE directory /d/a
                         -> two: CREATE directory /d/a
    touch    /d/a/x      -> one: CREATE file /d/a/x
                         -> two: CREATE file /d/a/x
"""

AWAY = r"""
moved away, the path is quiet until something is there again
    write    /d/f
    watch    /d/f create modify moveself
    rename   /d/f /d/g   -> MOVE_SELF file /d/f
    append   /d/g        ->
    touch    /d/f        -> CREATE file /d/f
                         -> MODIFY file /d/f
    append   /d/f        -> MODIFY file /d/f
    append   /d/g        ->

moved back, it is the same file: nothing is reported, and it is watched
    write    /d/f
    watch    /d/f create modify movedto
    rename   /d/f /d/g   ->
    append   /d/g        ->
    rename   /d/g /d/f   ->
    append   /d/f        -> MODIFY file /d/f

a directory that is moved away and back
    makedirs /d/a/b
    watch    /d/a recursive create movedto
    rename   /d/a /e/a   ->
    touch    /e/a/b/x    ->
    rename   /e/a /d/a   ->
    touch    /d/a/b/y    -> CREATE file /d/a/b/y

an ancestor that is moved away and back
    makedirs /d/a/b
    write    /d/a/b/f
    watch    /d/a/b/f create modify moveself
    rename   /d/a /e/a   ->
    append   /e/a/b/f    ->
    rename   /e/a /d/a   ->
    append   /d/a/b/f    -> MODIFY file /d/a/b/f

an ancestor that is replaced by another directory
    makedirs /d/a/b
    makedirs /d/new/b
    write    /d/a/b/f
    write    /d/new/b/f
    watch    /d/a/b/f create modify movedto
    rename   /d/a /d/old ; rename /d/new /d/a -> MODIFY file /d/a/b/f
    append   /d/old/b/f  ->
    append   /d/a/b/f    -> MODIFY file /d/a/b/f

an ancestor that is exchanged
    makedirs /d/a/b
    makedirs /d/new/b
    write    /d/a/b/f
    write    /d/new/b/f
    watch    /d/a/b/f modify
    exchange /d/a /d/new -> MODIFY file /d/a/b/f
    append   /d/new/b/f  ->
    append   /d/a/b/f    -> MODIFY file /d/a/b/f

a subject path that moves inside another one's tree
    makedirs /d/a/b
    watch    /d recursive create as=one
    watch    /d/a recursive create as=two
    rename   /d/a /d/z   ->
    touch    /d/z/b/x    -> one: CREATE file /d/z/b/x
    mkdir    /d/a        -> one: CREATE directory /d/a
                         -> two: CREATE directory /d/a
    touch    /d/a/x      -> one: CREATE file /d/a/x
                         -> two: CREATE file /d/a/x
"""

LINKS = r"""
a link to a file is pointed at another one
    write    /d/one
    write    /d/two
    symlink  one /d/l
    watch    /d/l modify movedto
    repoint  two /d/l    -> MOVED_TO file /d/l
                         -> MODIFY file /d/l
    append   /d/one      ->
    append   /d/two      -> MODIFY file /d/l

a link on the way is pointed at another directory
    mkdir    /d/one
    mkdir    /d/two
    write    /d/one/f
    write    /d/two/f
    symlink  one /d/l
    watch    /d/l/f modify movedto
    repoint  two /d/l    -> MODIFY file /d/l/f
    append   /d/one/f    ->
    append   /d/two/f    -> MODIFY file /d/l/f

a link that is pointed at the same file in other words
    write    /d/f
    symlink  f /d/l
    watch    /d/l modify movedto create
    repoint  ../d/./f /d/l ->
    append   /d/f        -> MODIFY file /d/l
    repoint  /d/f /d/l   ->
    append   /d/f        -> MODIFY file /d/l

absolute links begin at the container's root
    makedirs /e/one
    makedirs /e/two
    write    /e/one/f
    write    /e/two/f
    symlink  /e/one /d/l
    watch    /d/l/f modify
    repoint  /e/two /d/l -> MODIFY file /d/l/f
    append   /e/two/f    -> MODIFY file /d/l/f

a link with .. that leads past the root stays in it
    write    /e/f
    write    /e/g
    symlink  ../../../../e/f /d/l
    watch    /d/l modify
    append   /e/f        -> MODIFY file /d/l
    write    /e/h ; rename /e/h /e/f -> MODIFY file /d/l
    repoint  ../../../../../e/g /d/l -> MODIFY file /d/l
    append   /e/g        -> MODIFY file /d/l

a directory is pointed at another one through a link
    makedirs /e/one/a
    makedirs /e/two/b
    symlink  /e/one /d/l
    watch    /d/l recursive create movedto
    repoint  /e/two /d/l -> MOVED_TO directory /d/l
                         -> CREATE directory /d/l/b
    touch    /e/one/a/x  ->
    touch    /e/two/b/x  -> CREATE file /d/l/b/x

a link to what is missing
    symlink  /e/a/f /d/l
    watch    /d/l create modify -> ENOENT /d/l
    mkdir    /e/a        ->
    touch    /e/a/f      -> CREATE file /d/l
                         -> MODIFY file /d/l
    append   /e/a/f      -> MODIFY file /d/l

a missing path through a link that leads nowhere yet
    symlink  ../e/a /d/l
    watch    /d/l/b/f modify -> ENOENT /d/l/b/f
    makedirs /e/a/b      ->
    touch    /e/a/b/f    -> MODIFY file /d/l/b/f

a chain of links, re-pointed at each step
    write    /d/one
    write    /d/two
    symlink  one /d/k
    symlink  k /d/l
    watch    /d/l modify
    repoint  two /d/k    -> MODIFY file /d/l
    repoint  one /d/l    -> MODIFY file /d/l
    repoint  two /d/l    -> MODIFY file /d/l
    append   /d/two      -> MODIFY file /d/l

a link that leads to itself until it does not
    symlink  l /d/l
    write    /d/f
    watch    /d/l modify -> ELOOP /d/l
    repoint  f /d/l      -> MODIFY file /d/l
    append   /d/f        -> MODIFY file /d/l

a link is removed and made again
    write    /d/f
    symlink  f /d/l
    watch    /d/l create modify
    unlink   /d/l        ->
    append   /d/f        ->
    symlink  f /d/l      -> CREATE file /d/l
                         -> MODIFY file /d/l
    append   /d/f        -> MODIFY file /d/l

what a link led to is not reported any more
    write    /d/f
    write    /d/g
    symlink  f /d/l
    watch    /d/l attrib deleteself modify
    symlink  g /d/k ; rename /d/k /d/l -> MODIFY file /d/l
    chmod    600 /d/f    ->
    unlink   /d/f        ->
    append   /d/g        -> MODIFY file /d/l

what a link leads to is deleted
    write    /d/f
    symlink  f /d/l
    watch    /d/l attrib deleteself
    unlink   /d/f        -> ATTRIB file /d/l
                         -> DELETE_SELF file /d/l

a link is replaced by a file
    write    /d/f
    symlink  f /d/l
    watch    /d/l create modify
    unlink   /d/l ; touch /d/l -> CREATE file /d/l
                         -> MODIFY file /d/l
    append   /d/f        ->
    append   /d/l        -> MODIFY file /d/l
"""

FOLLOWED = r"""
followMove keeps to the directory, wherever it goes
    mkdir    /d/a
    mkdir    /e/b
    watch    /d/a followMove create moveself
    rename   /d/a /d/z   -> MOVE_SELF file /d/a
    touch    /d/z/1      -> CREATE file /d/z/1
    rename   /d/z /e/b/y -> MOVE_SELF file /d/z
    touch    /e/b/y/2    -> CREATE file /e/b/y/2
    rename   /e/b /d/b   ->
    rename   /d/b/y /x   -> MOVE_SELF file /d/b/y
    touch    /x/3        -> CREATE file /x/3

followMove does not need moveself
    write    /d/f
    watch    /d/f followMove modify
    rename   /d/f /e/f   ->
    append   /e/f        -> MODIFY file /e/f
    rename   /e/f /g     ->
    append   /g          -> MODIFY file /g

followMove leaves alone what appears at the old path
    write    /d/f
    watch    /d/f followMove create modify
    rename   /d/f /d/g   ->
    write    /d/f        ->
    append   /d/f        ->
    append   /d/g        -> MODIFY file /d/g

followMove of a tree
    makedirs /d/a/b
    watch    /d/a recursive followMove create
    rename   /d/a /e/z   ->
    touch    /e/z/b/x    -> CREATE file /e/z/b/x
    makedirs /e/z/c/d    -> CREATE directory /e/z/c
                         -> CREATE directory /e/z/c/d
    touch    /e/z/c/d/x  -> CREATE file /e/z/c/d/x

several moves at once are followed to the end
    mkdir    /d/a
    watch    /d/a followMove create
    rename   /d/a /d/b ; rename /d/b /e/c ; rename /e/c /x ->
    touch    /x/1        -> CREATE file /x/1

a followed directory below one that moves away and back at once
    makedirs /d/a/b
    watch    /d/a/b recursive followMove create
    rename   /d/a /e/a ; rename /e/a /d/a ; touch /d/a/b/1 -> CREATE file /d/a/b/1
    touch    /d/a/b/2    -> CREATE file /d/a/b/2
    rename   /d/a /e/a ; rename /e/a /d/c ; rename /d/c /e/c ; rename /e/c /d/e ->
    touch    /d/e/b/3    -> CREATE file /d/e/b/3

a followed directory that is deleted
    mkdir    /d/a
    watch    /d/a followMove create deleteself
    rename   /d/a /d/b
    rmdir    /d/b        -> DELETE_SELF file /d/b
    mkdir    /d/a        ->

a path that was not moved comes back under followMove too
    mkdir    /d/a
    watch    /d/a followMove create deleteself
    rmdir    /d/a        -> DELETE_SELF file /d/a
    mkdir    /d/a        -> CREATE directory /d/a
    rename   /d/a /d/b   ->
    touch    /d/b/x      -> CREATE file /d/b/x

a followed file with a name like that of a deleted one
    write    /d/f
    watch    /d/f followMove modify
    rename   /d/f /d/f\x20(deleted) ->
    append   /d/f\x20(deleted) -> MODIFY file /d/f (deleted)
    rename   /d/f\x20(deleted) /e/g\x20(deleted)\x20(deleted) ->
    append   /e/g\x20(deleted)\x20(deleted) -> MODIFY file /e/g (deleted) (deleted)
    rename   /e/g\x20(deleted)\x20(deleted) /d/h ->
    append   /d/h        -> MODIFY file /d/h

a followed directory below one with such a name
    makedirs /d/a\x20(deleted)/b
    watch    /d/a\x20(deleted)/b recursive followMove create
    rename   /d/a\x20(deleted)/b /d/a\x20(deleted)/c\x20(deleted) ->
    touch    /d/a\x20(deleted)/c\x20(deleted)/x -> CREATE file /d/a (deleted)/c (deleted)/x
    rename   /d/a\x20(deleted) /d/z ->
    touch    /d/z/c\x20(deleted)/y -> CREATE file /d/z/c (deleted)/y
    rmtree   /d/z        ->
    makedirs /d/z/c\x20(deleted) -> CREATE directory /d/z/c (deleted)

a followed file that is deleted, and moved under another name that it has
    write    /d/f
    link     /d/f /d/g
    watch    /d/f followMove create modify
    unlink   /d/f        ->
    rename   /d/g /d/h   ->
    append   /d/h        ->
    touch    /d/f        -> CREATE file /d/f
                         -> MODIFY file /d/f
    append   /d/f        -> MODIFY file /d/f

a followed file that is replaced
    write    /d/f
    watch    /d/f followMove modify movedto
    write    /d/g ; rename /d/g /d/f -> MOVED_TO file /d/f
                         -> MODIFY file /d/f
    append   /d/f        -> MODIFY file /d/f
"""

UNMOUNTED = r"""
what is below comes back when a file system is unmounted
    mkdir    /d/m
    write    /d/m/f
    mount    /d/m
    write    /d/m/f
    watch    /d/m/f modify
    append   /d/m/f      -> MODIFY file /d/m/f
    umount   /d/m        -> MODIFY file /d/m/f
    append   /d/m/f      -> MODIFY file /d/m/f

a directory below comes back when the one over it is unmounted
    makedirs /d/m/a
    mount    /d/m
    touch    /d/m/x
    watch    /d/m recursive create
    touch    /d/m/y      -> CREATE file /d/m/y
    umount   /d/m        -> CREATE directory /d/m/a
    touch    /d/m/a/x    -> CREATE file /d/m/a/x

an ancestor's file system is unmounted
    makedirs /d/m
    mount    /d/m
    makedirs /d/m/a/b
    watch    /d/m/a/b create
    umount   /d/m        ->
    makedirs /d/m/a/b    -> CREATE directory /d/m/a/b
    touch    /d/m/a/b/x  -> CREATE file /d/m/a/b/x
"""

STORIES = parse(MISSING + AGAIN + AWAY + LINKS + FOLLOWED + UNMOUNTED)


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.title.replace(" ", "_"))
def test_story(stage: Stage, story: Story) -> None:
    stage.play(story)


def test_a_path_and_a_link_to_it_in_one_subject_report_once(stage: Stage) -> None:
    do = stage.world.operations
    do["mkdir"]("/d/a")
    do["mkdir"]("/d/b")
    do["symlink"]("a", "/d/l")
    stage.watching.watch("-", [b"/d/a", b"/d/l"], EVENTS["CREATE"])
    do["touch"]("/d/a/x")
    (line,) = stage.watching.lines()
    assert line in {"-: CREATE file /d/a/x", "-: CREATE file /d/l/x"}
    do["repoint"]("b", "/d/l")
    assert stage.watching.lines() == []
    do["touch"]("/d/a/y")
    assert stage.watching.lines() == ["-: CREATE file /d/a/y"]
    do["touch"]("/d/b/y")
    assert stage.watching.lines() == ["-: CREATE file /d/l/y"]


def test_every_title_is_told_once() -> None:
    titles = [story.title for story in STORIES]
    assert sorted(titles) == sorted(set(titles))
