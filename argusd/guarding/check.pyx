# cython: language_level=3, boundscheck=False, wraparound=False
"""Seeing that a guard works: the daemon opens what is guarded, and the responder must be asked.

That open is refused: no file system is asked for the file, nothing is read, nobody else hears of it. But the kernel
may ask others first, and on a file system with a server it opens the file for the responder before that is asked. Since
either may take for ever, the open is left to a process of its own (twins.pyx), for which nobody waits long.
"""

from libc.errno cimport EIO, ENOMEM, ETIMEDOUT, errno
from libc.stdint cimport uint32_t
from libc.stdio cimport snprintf
from libc.stdlib cimport free, malloc
from libc.string cimport memset
from posix.time cimport CLOCK_REALTIME, clock_gettime, timespec

from argusd.guarding.guards cimport STEP_CHECK, Guard, is_file
from argusd.guarding.marks cimport mark_drop, mark_set
from argusd.guarding.table cimport CHECKED, CHECKING, NAME, UNCHECKED, Entry, Group
from argusd.includes.fanotify cimport FAN_OPEN_PERM
from argusd.includes.linux cimport (
    AT_EMPTY_PATH,
    AT_STATX_DONT_SYNC,
    F_DUPFD_CLOEXEC,
    O_CLOEXEC,
    O_NOCTTY,
    O_NONBLOCK,
    O_RDONLY,
    STATX_TYPE,
    S_ISDIR,
    S_ISREG,
    close,
    fcntl,
    open,
    statx,
    statx_t,
)
from argusd.includes.pthread cimport (
    add_int,
    load_int,
    load_pointer,
    pthread_detach,
    pthread_t,
    pthread_timedjoin_np,
    store_int,
)
from argusd.threads cimport thread_begin
from argusd.twins cimport Twin, twin_keep, twin_run


cdef enum:
    PATIENCE_S = 2
    WAITING_MAX = 64                # opens that have not come back


# An open on its way. The thread frees it.
cdef struct Attempt:
    int fd
    int error


cdef int waiting = 0                # how many threads are at it


cdef int open_once(int fd) noexcept nogil:
    """Open what is behind an O_PATH descriptor; the errno, EIO when it was not refused."""
    cdef char link[40]
    cdef int opened
    snprintf(link, sizeof(link), b"/proc/self/fd/%d", fd)
    opened = open(link, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC)
    if opened < 0:
        return errno
    close(opened)
    return EIO


cdef void open_apart(Twin *twin, void *argument) noexcept nogil:
    cdef Attempt *attempt = <Attempt *>argument
    attempt.error = open_once(attempt.fd)


cdef void *attempt_open(void *argument) noexcept nogil:
    """The body of a thread that waits for an open."""
    cdef Attempt *attempt = <Attempt *>argument
    cdef Twin twin
    cdef size_t error
    memset(&twin, 0, sizeof(Twin))
    twin.body, twin.argument, twin.name = open_apart, attempt, b"argusd-check"
    twin_keep(&twin, attempt.fd)
    error = <size_t>twin_run(&twin) or <size_t>attempt.error
    close(attempt.fd)
    free(attempt)
    add_int(&waiting, -1)
    return <void *>error


cdef int open_patiently(int fd) noexcept nogil:
    """Likewise, in a process of its own; ETIMEDOUT when it takes long."""
    cdef Attempt *attempt = <Attempt *>malloc(sizeof(Attempt))
    cdef pthread_t thread
    cdef timespec until
    cdef void *result = NULL
    cdef int error
    if attempt == NULL:
        return ENOMEM
    attempt.fd = fcntl(fd, F_DUPFD_CLOEXEC, 0)
    if attempt.fd < 0 or load_int(&waiting) >= WAITING_MAX:
        error = errno if attempt.fd < 0 else ETIMEDOUT
        if attempt.fd >= 0:
            close(attempt.fd)
        free(attempt)
        return error
    add_int(&waiting, 1)
    error = thread_begin(&thread, attempt_open, attempt, b"check")
    if error:
        add_int(&waiting, -1)
        close(attempt.fd)
        free(attempt)
        return error
    clock_gettime(CLOCK_REALTIME, &until)
    until.tv_sec += PATIENCE_S
    if pthread_timedjoin_np(thread, &result, &until) != 0:
        pthread_detach(thread)
        return ETIMEDOUT
    return <int><size_t>result


cdef bint can_be_opened(int fd) noexcept nogil:
    """Only files and directories make permission events, and opening a device may do anything."""
    cdef statx_t status
    if statx(fd, b"", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE, &status) != 0:
        return False
    return S_ISREG(status.stx_mode) or S_ISDIR(status.stx_mode)


cdef int guarded_check(Guarded *guarded, int fd) noexcept nogil:
    """Try what is behind an O_PATH descriptor; 0 or an errno, EIO when the responder was not asked."""
    cdef Guard *guard = guarded.guard
    cdef Entry *entry = guarded.entries
    cdef Group *group
    cdef int error
    cdef bint also_open = not guard.bits & FAN_OPEN_PERM
    while entry != NULL and (entry.kind == NAME or not is_file(entry, fd)):
        entry = entry.next
    if entry == NULL or not can_be_opened(fd):
        return 0
    group = <Group *>load_pointer(&guard.gate.reporter.groups[entry.group])
    if also_open:
        error = mark_set(group, fd, entry.device, entry.inode, <uint32_t>FAN_OPEN_PERM, False)
        if error:
            return error
    guard.step = STEP_CHECK
    store_int(&entry.check, CHECKING)
    error = open_patiently(fd)
    if load_int(&entry.check) == CHECKED:
        error = 0
    store_int(&entry.check, UNCHECKED)
    if also_open:
        mark_drop(group, fd, entry.device, entry.inode, <uint32_t>FAN_OPEN_PERM, False)
    return error
