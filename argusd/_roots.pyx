# cython: language_level=3, boundscheck=False, wraparound=False
"""Which directory is at the end of a magic link of /proc, without asking the file system that it is on.

stat(2) asks the server of a FUSE or network file system. open(2) with O_PATH through a magic link asks nobody, and
neither does statx(2) with AT_STATX_DONT_SYNC: device and inode of what is open are known.
"""

import os

from libc.errno cimport errno

from argusd.includes.linux cimport (
    AT_EMPTY_PATH,
    AT_STATX_DONT_SYNC,
    O_CLOEXEC,
    O_PATH,
    STATX_INO,
    close,
    open,
    statx,
    statx_t,
)


def identity(str path not None):
    cdef bytes name = os.fsencode(path)
    cdef const char *link = name
    cdef statx_t status
    cdef int fd, failure = 0
    with nogil:
        fd = open(link, O_PATH | O_CLOEXEC)
        if fd < 0:
            failure = errno
        else:
            if statx(fd, b"", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_INO, &status) != 0:
                failure = errno
            close(fd)
    if failure:
        raise OSError(failure, os.strerror(failure), path)
    return status.stx_dev_major << 20 | status.stx_dev_minor, status.stx_ino
