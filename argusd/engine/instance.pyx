# cython: language_level=3, boundscheck=False, wraparound=False
"""The inotify instance, and the length of its queue.

Facts about fs.inotify.max_queued_events:

* An instance keeps the value that stands there when it is made; what is written later is for later instances.
* There is one value for the whole node, whoever reads or writes it, in whatever namespace.

So it is raised for the moment in which the instance is made, which is three system calls with all signals blocked.
"""

from libc.errno cimport errno
from libc.stdio cimport snprintf
from libc.stdlib cimport atol

from argusd.includes.linux cimport (
    IN_CLOEXEC,
    IN_NONBLOCK,
    O_CLOEXEC,
    O_RDONLY,
    close,
    inotify_init1,
    open,
    pread,
    pwrite,
)
from argusd.includes.pthread cimport SIG_SETMASK, pthread_sigmask, sigfillset, sigset_t


cdef long read_length(int fd) noexcept nogil:
    """The value of the sysctl, 0 when it cannot be read."""
    cdef char text[24]
    cdef ssize_t size = pread(fd, text, sizeof(text) - 1, 0) if fd >= 0 else 0
    if size <= 0:
        return 0
    text[size] = 0
    return atol(text)


cdef bint write_length(int fd, long length) noexcept nogil:
    """False, with errno, when the value cannot be changed."""
    cdef char text[24]
    cdef int size = snprintf(text, sizeof(text), b"%ld\n", length)
    return pwrite(fd, text, <size_t>size, 0) == size


cdef int open_sysctl() noexcept nogil:
    return open(b"/proc/sys/fs/inotify/max_queued_events", O_RDONLY | O_CLOEXEC)


cdef int instance_make(int sysctl_fd, long wanted, long *length, int *error) noexcept nogil:
    """An inotify instance with a queue of ``wanted`` events, or more where the node has more; else a negative errno.

    ``sysctl_fd`` is a descriptor of fs.inotify.max_queued_events or -1. ``length`` is what the instance got, 0 where
    that is not known; ``error`` why it is less, or the errno of a value that was not put back, made negative.
    """
    cdef sigset_t every, before_mask
    cdef int own_fd = open_sysctl() if sysctl_fd < 0 else sysctl_fd, fd
    cdef long before = read_length(own_fd)
    cdef bint raised
    sigfillset(&every)
    pthread_sigmask(SIG_SETMASK, &every, &before_mask)
    raised = sysctl_fd >= 0 and wanted > before > 0 and write_length(sysctl_fd, wanted)
    if wanted > before > 0 and not raised:
        error[0] = errno
    length[0] = read_length(own_fd)
    fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC)
    if fd < 0:
        fd = -errno
    if raised and not write_length(sysctl_fd, before):
        error[0] = -errno
    pthread_sigmask(SIG_SETMASK, &before_mask, NULL)
    if own_fd >= 0 and own_fd != sysctl_fd:
        close(own_fd)
    return fd
