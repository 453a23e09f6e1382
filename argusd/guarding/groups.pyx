# cython: language_level=3, boundscheck=False, wraparound=False
"""Making, serving and closing the permission groups.

There is one for local file systems, and one for all whose server may keep an open waiting (see responder.pyx).
"""

from libc.errno cimport EINVAL, EIO, ENOMEM, EPERM, errno
from libc.stdlib cimport calloc, free
from posix.time cimport CLOCK_REALTIME, clock_gettime, timespec
from posix.unistd cimport getpid

from argusd.guarding.marks cimport marks_free
from argusd.guarding.parents cimport parents_forget
from argusd.guarding.reporter cimport GROUPS, reporter_main
from argusd.guarding.responder cimport respond, responder_size
from argusd.guarding.table cimport LINKS, RING
from argusd.includes.fanotify cimport (
    FAN_CLASS_CONTENT,
    FAN_CLOEXEC,
    FAN_ENABLE_AUDIT,
    FAN_NONBLOCK,
    FAN_UNLIMITED_MARKS,
    FAN_UNLIMITED_QUEUE,
    fanotify_init,
)
from argusd.includes.linux cimport (
    EFD_CLOEXEC,
    EFD_NONBLOCK,
    F_DUPFD_CLOEXEC,
    MAP_ANONYMOUS,
    MAP_FAILED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    O_CLOEXEC,
    O_DIRECTORY,
    O_LARGEFILE,
    O_NOATIME,
    O_NONBLOCK,
    O_PATH,
    O_RDONLY,
    PROT_READ,
    PROT_WRITE,
    close,
    eventfd,
    fcntl,
    mmap,
    munmap,
    open,
    write,
)
from argusd.includes.pthread cimport (
    load_int,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    pthread_timedjoin_np,
    store_int,
    store_pointer,
)
from argusd.threads cimport thread_begin


cdef enum:
    GROUP_FD = 512                  # descriptors of groups come behind all others, see group_fd_last


cdef void group_free(Group *group) noexcept nogil:
    cdef int i
    if group.fd >= 0 and not load_int(&group.broken):
        close(group.fd)
    if group.wake_fd >= 0:
        close(group.wake_fd)
    if group.links_fd >= 0:
        close(group.links_fd)
    if group.proc_fd >= 0:
        close(group.proc_fd)
    for i in range(LINKS):
        if group.links[i]:
            close(group.links[i] - 1)
    parents_forget(group)
    if group.ring != NULL:
        munmap(group.ring, RING)
    free(group.responder)
    pthread_mutex_destroy(&group.lock)
    free(group)


cdef int group_fd_last(int fd) noexcept nogil:
    """Give a group a number behind all others; -1 when there is none.

    When a process dies, its descriptors are released beginning with the last. While a process waits for an answer of
    the group, the end of an inotify instance that watches the file waits for it, too, when what is marked is only the
    directory; of several such instances that of the one that the kernel would tell first. So the group has to end
    first: killed with processes waiting, a daemon that had the instance behind the group did not end the first time,
    and never failed to in 200 deaths with the group behind the instance.
    """
    cdef int last = -1, least = GROUP_FD
    while last < 0 and least > 0:
        last = fcntl(fd, F_DUPFD_CLOEXEC, least)
        least //= 2                 # there may be no such high numbers
    close(fd)
    return last


cdef int group_open(Group *group) noexcept nogil:
    """The kernel's part of a group; 0 or an errno.

    Whether an answer is audited is said with each answer. So one group will do, audit or not, and has to: of two in one
    process each may wait for the other's end, and then neither the process nor those that wait for it ever end.
    """
    cdef unsigned int flags = FAN_CLASS_CONTENT | FAN_CLOEXEC | FAN_NONBLOCK | FAN_UNLIMITED_QUEUE | FAN_UNLIMITED_MARKS
    cdef int event_flags = O_RDONLY | O_LARGEFILE | O_CLOEXEC | O_NONBLOCK | O_NOATIME
    group.fd = fanotify_init(flags | FAN_ENABLE_AUDIT, <unsigned int>event_flags)
    if group.fd < 0 and (errno == EPERM or errno == EINVAL):
        group.no_audit = errno      # no CAP_AUDIT_WRITE, or a kernel without audit
        group.fd = fanotify_init(flags, <unsigned int>event_flags)
    if group.fd >= 0:
        group.fd = group_fd_last(group.fd)
    if group.fd < 0:
        return errno
    group.links_fd = open(b"/proc/self/fd", O_PATH | O_DIRECTORY | O_CLOEXEC)
    group.proc_fd = open(b"/proc", O_PATH | O_DIRECTORY | O_CLOEXEC)
    group.wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
    return errno if group.links_fd < 0 or group.proc_fd < 0 or group.wake_fd < 0 else 0


cdef int group_make(Gate *gate, int number) noexcept nogil:
    """0 or an errno."""
    cdef Group *group = <Group *>calloc(1, sizeof(Group))
    cdef int error
    if group == NULL:
        return ENOMEM
    pthread_mutex_init(&group.lock, NULL)
    group.fd = group.links_fd = group.proc_fd = group.wake_fd = -1
    group.remote = number == REMOTE
    group.self = getpid()
    group.reporter_waits, group.reporter_fd = &gate.reporter.waits, gate.reporter.fd
    group.responder = calloc(1, responder_size())
    group.ring = <char *>mmap(NULL, RING, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if <void *>group.ring == MAP_FAILED:
        group.ring = NULL
    error = group_open(group)
    if not error and (group.responder == NULL or group.ring == NULL):
        error = ENOMEM
    if not error:
        error = thread_begin(&group.thread, respond, group, b"responder")
    if error:
        group_free(group)
        return error
    store_pointer(&gate.reporter.groups[number], group)
    return 0


cdef Group *group_for(Gate *gate, int number, int *error) noexcept nogil:
    """The group of that number, made when it is first needed. With the gate's lock held."""
    if gate.closed:
        error[0] = EIO
    elif gate.reporter.groups[number] == NULL:
        error[0] = group_make(gate, number)
    return <Group *>gate.reporter.groups[number]


cdef int gate_open(Gate *gate, int *no_audit) noexcept nogil:
    """Make sure that there can be guards; 0 or an errno. ``no_audit`` becomes the one that keeps them from audit."""
    cdef int error = 0
    cdef Group *group
    pthread_mutex_lock(&gate.lock)
    group = group_for(gate, LOCAL, &error)
    if not error:
        no_audit[0] = group.no_audit
    pthread_mutex_unlock(&gate.lock)
    return error


cdef int gate_init(Gate *gate) noexcept nogil:
    """0 or an errno; ``gate.reporter.sinks`` are set by the caller."""
    cdef int error
    pthread_mutex_init(&gate.lock, NULL)
    gate.reporter.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
    if gate.reporter.fd < 0:
        error = errno
    else:
        error = thread_begin(&gate.reporter_thread, reporter_main, &gate.reporter, b"reporter")
    gate.closed = error != 0
    return error


cdef void gate_close(Gate *gate, int timeout_ms) noexcept nogil:
    """Let go all that wait, end the threads, write the last lines. The memory stays until ``gate_free``."""
    cdef unsigned long long one = 1
    cdef timespec until
    cdef Group *group
    cdef bint ended = True
    cdef int i
    pthread_mutex_lock(&gate.lock)
    gate.closed = True
    pthread_mutex_unlock(&gate.lock)
    clock_gettime(CLOCK_REALTIME, &until)
    until.tv_sec += timeout_ms // 1000 + 1
    for i in range(GROUPS):
        group = <Group *>gate.reporter.groups[i]
        if group == NULL:
            continue
        store_int(&group.stopping, 1)
        write(group.wake_fd, &one, sizeof(one))
        ended = pthread_timedjoin_np(group.thread, NULL, &until) == 0 and ended
        if not load_int(&group.broken):
            close(group.fd)
        group.fd = -1
    store_int(&gate.reporter.stopping, 1)
    write(gate.reporter.fd, &one, sizeof(one))
    ended = pthread_timedjoin_np(gate.reporter_thread, NULL, &until) == 0 and ended
    pthread_mutex_lock(&gate.lock)
    gate.ended = ended
    pthread_mutex_unlock(&gate.lock)


cdef void gate_free(Gate *gate) noexcept nogil:
    """Free what is left, unless a thread that hangs in a file system may still use it."""
    cdef Group *group
    cdef int i
    if not gate.ended:
        return
    close(gate.reporter.fd)
    for i in range(GROUPS):
        group = <Group *>gate.reporter.groups[i]
        if group != NULL:
            marks_free(group)
            group_free(group)
    pthread_mutex_destroy(&gate.lock)
