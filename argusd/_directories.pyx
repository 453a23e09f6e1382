# cython: language_level=3
"""An inotify instance for a few directories: which names come, which go.

The engine reads its own instance natively, event by event. Here little happens: a directory of the cgroup tree changes
when a container starts or ends. Some facts: IN_IGNORED tells that a directory was removed, after which its number means
nothing; IN_Q_OVERFLOW comes with the number -1; kernfs, where cgroups are, asks no server and does not block.
"""

import os

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint32_t
from libc.string cimport strlen
from posix.unistd cimport close, read

cdef extern from "<sys/inotify.h>" nogil:
    struct inotify_event:
        int wd
        uint32_t mask
        uint32_t len
        char name[0]
    int inotify_init1(int flags)
    int inotify_add_watch(int fd, const char *path, uint32_t mask)
    int inotify_rm_watch(int fd, int wd)
    enum:
        IN_CLOEXEC
        IN_NONBLOCK
        IN_CREATE
        IN_DELETE
        IN_DELETE_SELF
        IN_IGNORED
        IN_ONLYDIR
        IN_Q_OVERFLOW

cdef enum:
    BUFFER_BYTES = 16384

COME = IN_CREATE
ENDED = IN_IGNORED
OVERFLOW = IN_Q_OVERFLOW


cdef class Directories:
    cdef int _fd

    def __cinit__(self):
        self._fd = -1

    def __init__(self):
        self._fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK)
        if self._fd < 0:
            raise OSError(errno, f"inotify_init1: {os.strerror(errno)}")

    def __dealloc__(self):
        if self._fd >= 0:
            close(self._fd)

    def fileno(self):
        return self._fd

    def add(self, bytes path not None):
        cdef int wd = inotify_add_watch(self._fd, path, IN_CREATE | IN_DELETE | IN_DELETE_SELF | IN_ONLYDIR)
        if wd < 0:
            raise OSError(errno, os.strerror(errno), path)
        return wd

    def remove(self, int wd):
        inotify_rm_watch(self._fd, wd)  # EINVAL: its directory has gone before

    def read(self):
        cdef char buffer[BUFFER_BYTES]
        cdef inotify_event *event
        cdef Py_ssize_t got, at = 0
        cdef list events = []
        got = read(self._fd, buffer, BUFFER_BYTES)
        if got < 0:
            if errno == EAGAIN or errno == EINTR:
                return events
            raise OSError(errno, f"reading an inotify instance: {os.strerror(errno)}")
        while at < got:
            event = <inotify_event *> &buffer[at]
            events.append((event.wd, event.mask, event.name[:strlen(event.name)] if event.len else b""))
            at += sizeof(inotify_event) + event.len
        return events

    def close(self):
        if self._fd >= 0:
            close(self._fd)
            self._fd = -1
