# cython: language_level=3, boundscheck=False, wraparound=False
"""The descriptors of a group, which only its responder and its marker have, and the marker thread itself.

Facts that shape this file:

* For each event the kernel puts a descriptor into the table of the thread that reads. When there is no room in it the
  kernel denies the open. So a responder has a table of its own: what clients and containers make the rest of the daemon
  open takes nothing from it.
* A process that is killed closes a table when the last thread that shares it has gone. A thread that waits for a file
  system, for which others have to wait, does not keep the group: neither of these two asks any.
* Of a thread with a table of its own /proc/self/fd tells nothing, it is that of the process' first thread.
  /proc/thread-self/fd is its own.
* fanotify_mark(2) takes the number of the group. So who wants a mark orders it from the marker: the file comes over a
  socket, the rest is in memory, which all threads share.
* One order is carried out at a time. Whoever orders holds the lock of the group, and that lock is not taken here.
"""

from libc.errno cimport EIO, errno
from argusd.includes.linux cimport (
    CLONE_FILES,
    O_CLOEXEC,
    O_DIRECTORY,
    O_PATH,
    O_RDWR,
    close,
    open,
    syscall,
    unshare,
)
from argusd.includes.twin cimport SYS_close_range, dup2, pass_byte, take_byte
from argusd.threads cimport thread_begin


cdef enum:
    KEPT = 3
    LAST_FD = 1 << 20               # where close_range(2) is missing: no descriptor is expected behind it


cdef void close_between(int first, int last) noexcept nogil:
    cdef int fd
    if first > last or syscall(SYS_close_range, first, last, 0) == 0:
        return
    for fd in range(first, min(last, LAST_FD) + 1):
        close(fd)


cdef void close_others(int *kept) noexcept nogil:
    """Close what is not in the list, which is sorted here; 0 to 2 become /dev/null."""
    cdef int at = 3, i, j, null = open(b"/dev/null", O_RDWR | O_CLOEXEC)
    for i in range(3):
        if null >= 0:
            dup2(null, i)
    for i in range(KEPT):
        for j in range(KEPT - 1 - i):
            if kept[j] > kept[j + 1]:
                kept[j], kept[j + 1] = kept[j + 1], kept[j]
    for i in range(KEPT):
        if kept[i] >= at:
            close_between(at, kept[i] - 1)
            at = kept[i] + 1
    close_between(at, 0x7FFFFFFF)


cdef void *obey(void *argument) noexcept nogil:
    """The body of the marker thread: carry orders out until the other end of the socket is closed."""
    cdef Group *group = <Group *>argument
    cdef int fd
    while take_byte(group.marker_fd, &fd) > 0:
        group.order_file = fd
        group.order(group)
        if fd >= 0:
            close(fd)
        if pass_byte(group.marker_fd, -1) != 0:
            break
    return NULL


cdef int marker_begin(Group *group) noexcept nogil:
    """Give the calling thread, a responder, a table of descriptors of its own, and a marker; 0 or an errno."""
    cdef int kept[KEPT]
    cdef int error
    if unshare(CLONE_FILES) != 0:
        return errno
    kept[0], kept[1], kept[2] = group.wake_fd, group.reporter_fd, group.marker_fd
    close_others(kept)
    group.links_fd = open(b"/proc/thread-self/fd", O_PATH | O_DIRECTORY | O_CLOEXEC)
    group.proc_fd = open(b"/proc", O_PATH | O_DIRECTORY | O_CLOEXEC)
    if group.links_fd < 0 or group.proc_fd < 0:
        return errno
    error = thread_begin(&group.marker, obey, group, b"marker")
    group.marking = error == 0
    return error


cdef int order(Group *group, order_body body, int fd) noexcept nogil:
    """Have the marker carry something out, with a copy of ``fd`` unless that is -1. With the lock of the group held.

    0 or an errno, EIO when the marker has ended.
    """
    cdef int none = -1
    group.order = body
    if group.order_fd < 0 or pass_byte(group.order_fd, fd) != 0 or take_byte(group.order_fd, &none) <= 0:
        return EIO
    return 0
