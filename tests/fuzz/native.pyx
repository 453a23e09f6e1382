# cython: language_level=3, binding=False
"""A face for tests on native parsers of what the kernel says of containers; no part of the program."""

from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from argusd.engine.mounts cimport next_mount
from argusd.engine.walk cimport Walk
from argusd.guarding.mountinfo cimport Mount, mount_next, piece_plain
from argusd.guarding.parents cimport stat_parent

cdef enum:
    ROOM = 4096


cdef char *exact(bytes text) except NULL:
    """A copy without the zero that follows a Python string, so that AddressSanitizer sees a read behind the end."""
    cdef char *copy = <char *>malloc(len(text) if text else 1)
    if copy == NULL:
        raise MemoryError
    memcpy(copy, <const char *>text, <size_t>len(text))
    return copy


def mounts(bytes text):
    cdef char *copy = exact(text)
    cdef char *point = <char *>malloc(ROOM)
    cdef size_t at = 0, size
    cdef Mount mount
    found = []
    try:
        while mount_next(copy, <size_t>len(text), &at, &mount):
            size = piece_plain(&mount.point, point, ROOM)
            found.append((mount.number, mount.device, point[:size], mount.kind.text[:mount.kind.size],
                          bool(mount.read_only)))
        return found
    finally:
        free(copy)
        free(point)


def points(bytes text):
    cdef Walk walk
    cdef char *point = <char *>malloc(ROOM)
    cdef size_t at = 0, size
    memset(&walk, 0, sizeof(walk))
    walk.mounts.data = exact(text)
    walk.mounts.size = <size_t>len(text)
    found = []
    try:
        while next_mount(&walk, &at, point, &size):
            found.append(point[:size])
        return found
    finally:
        free(walk.mounts.data)
        free(point)


def parent(bytes text):
    """The text ends with a zero, as the caller in the program has it."""
    return stat_parent(<const char *>text, <size_t>len(text))
