# cython: language_level=3, boundscheck=False, wraparound=False
"""Making, serving and closing the permission groups.

There is one for local file systems, and one for all whose server may keep an open waiting (see responder.pyx).
"""

from libc.errno cimport EINVAL, EIO, ENOMEM, EPERM, errno
from libc.stdlib cimport calloc, free
from posix.time cimport CLOCK_REALTIME, clock_gettime, timespec
from posix.unistd cimport getpid

from argusd.guarding.marker cimport marker_begin
from argusd.guarding.marks cimport marks_free
from argusd.guarding.parents cimport parents_forget
from argusd.guarding.reporter cimport GROUPS, reporter_main
from argusd.guarding.responder cimport respond, responder_size
from argusd.guarding.table cimport RING
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
    MAP_ANONYMOUS,
    MAP_FAILED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    O_CLOEXEC,
    O_LARGEFILE,
    O_NOATIME,
    O_NONBLOCK,
    O_RDONLY,
    PROT_READ,
    PROT_WRITE,
    close,
    eventfd,
    mmap,
    munmap,
    write,
)
from argusd.includes.pthread cimport (
    load_int,
    pthread_join,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    pthread_timedjoin_np,
    store_int,
    store_pointer,
)
from argusd.includes.twin cimport (
    AF_UNIX,
    SHUT_RDWR,
    SOCK_CLOEXEC,
    SOCK_SEQPACKET,
    pass_byte,
    shutdown,
    socketpair,
    take_byte,
)
from argusd.threads cimport thread_begin


cdef void group_free(Group *group) noexcept nogil:
    """Free a group whose responder has ended, or has not begun to answer."""
    if group.order_fd >= 0:
        shutdown(group.order_fd, SHUT_RDWR)     # ends the marker
    if group.serving:
        pthread_join(group.thread, NULL)
    if group.marking:
        pthread_join(group.marker, NULL)
    if group.order_fd >= 0:
        close(group.order_fd)
    if group.wake_fd >= 0:
        close(group.wake_fd)
    if group.ring != NULL:
        munmap(group.ring, RING)
    free(group.responder)
    pthread_mutex_destroy(&group.lock)
    free(group)


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
    return errno if group.fd < 0 else 0


cdef void *serve(void *argument) noexcept nogil:
    """The body of a responder thread: have a table of descriptors, a group in it, and answer until the end has come.

    What is in the table is closed when this thread and its marker have ended, the group before that.
    """
    cdef Group *group = <Group *>argument
    group.begun = marker_begin(group)
    if not group.begun:
        group.begun = group_open(group)
    if pass_byte(group.marker_fd, -1) == 0 and not group.begun:
        respond(group)
    if group.fd >= 0 and not load_int(&group.broken):
        close(group.fd)                     # lets all go that wait
    parents_forget(group)
    return NULL


cdef int serve_begin(Group *group) noexcept nogil:
    """Start the responder, and wait until it has its group; 0 or an errno."""
    cdef int ends[2]
    cdef int error, none
    group.wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
    if group.wake_fd < 0 or socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0:
        return errno
    group.order_fd, group.marker_fd = ends[0], ends[1]
    error = thread_begin(&group.thread, serve, group, b"responder")
    group.serving = error == 0
    if not error and take_byte(group.order_fd, &none) <= 0:
        error = EIO
    close(ends[1])                          # the responder has it
    return error or group.begun


cdef int group_make(Gate *gate, int number) noexcept nogil:
    """0 or an errno."""
    cdef Group *group = <Group *>calloc(1, sizeof(Group))
    cdef int error
    if group == NULL:
        return ENOMEM
    pthread_mutex_init(&group.lock, NULL)
    group.fd = group.links_fd = group.proc_fd = group.wake_fd = group.order_fd = group.marker_fd = -1
    group.remote = number == REMOTE
    group.self = getpid()
    group.reporter_waits, group.reporter_fd = &gate.reporter.waits, gate.reporter.fd
    group.responder = calloc(1, responder_size())
    group.ring = <char *>mmap(NULL, RING, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if <void *>group.ring == MAP_FAILED:
        group.ring = NULL
    error = ENOMEM if group.responder == NULL or group.ring == NULL else serve_begin(group)
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
        if group.serving and pthread_timedjoin_np(group.thread, NULL, &until) == 0:
            group.serving = False
        shutdown(group.order_fd, SHUT_RDWR)
        if group.marking and pthread_timedjoin_np(group.marker, NULL, &until) == 0:
            group.marking = False
        ended = ended and not group.serving and not group.marking
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
