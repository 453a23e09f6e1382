# cython: language_level=3, boundscheck=False, wraparound=False
"""What a walk has done in the daemon's own process, where its descriptors are.

A walk runs in a twin (twins.pyx), whose descriptors end with it. Two kinds of descriptors are not its own: those of
followed subjects, which the reader reads the path of, and the permission groups, which a twin that hangs in a file
system must not have. What is done here asks no file system of a container.
"""

from libc.errno cimport errno

from argusd.engine.core cimport core_lock, core_unlock
from argusd.engine.following cimport follow
from argusd.guarding.check cimport guarded_check
from argusd.guarding.guards cimport guarded_add, guarded_settle
from argusd.includes.linux cimport F_DUPFD_CLOEXEC, close, fcntl
from argusd.twins cimport at_home


cdef struct Following:
    Core *core
    Root *root
    int number                      # of a descriptor at home
    bint moved


cdef void copy_here(void *argument, int *fd) noexcept nogil:
    cdef Following *following = <Following *>argument
    core_lock(following.core)
    if following.root.follow_fd >= 0 and not following.root.subscription.cancelled:
        fd[0] = fcntl(following.root.follow_fd, F_DUPFD_CLOEXEC, 0)
    core_unlock(following.core)


cdef int followed_copy(Twin *twin, Core *core, Root *root) noexcept nogil:
    """A copy of the descriptor of a followed subject, -1 when there is none."""
    cdef Following following
    cdef int fd = -1
    following.core, following.root = core, root
    at_home(twin, copy_here, &following, &fd)
    return fd


cdef void keep_here(void *argument, int *fd) noexcept nogil:
    (<Following *>argument).number = fd[0]
    fd[0] = -1


cdef int followed_keep(Twin *twin, int fd) noexcept nogil:
    """Have a copy of a descriptor kept at home; its number there, -1 on failure."""
    cdef Following following
    cdef int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0)
    following.number = -1
    if copy >= 0:
        at_home(twin, keep_here, &following, &copy)
    return following.number


cdef void close_here(void *argument, int *fd) noexcept nogil:
    close((<Following *>argument).number)


cdef void followed_close(Twin *twin, int number) noexcept nogil:
    """Close what was kept at home."""
    cdef Following following
    cdef int none = -1
    following.number = number
    if number >= 0:
        at_home(twin, close_here, &following, &none)


cdef void move_here(void *argument, int *fd) noexcept nogil:
    cdef Following *following = <Following *>argument
    core_lock(following.core)
    following.moved = following.root.follow_fd >= 0 and follow(following.core, following.root)
    core_unlock(following.core)


cdef bint followed_moved(Twin *twin, Core *core, Root *root) noexcept nogil:
    """Give a followed subject the path that it has by now; False when that is the one it had."""
    cdef Following following
    cdef int none = -1
    following.core, following.root = core, root
    at_home(twin, move_here, &following, &none)
    return following.moved


cdef struct Guarding:
    Guarded *guarded
    int kind
    const char *path
    const char *child
    const char *name
    bint complete
    int error


cdef void add_here(void *argument, int *fd) noexcept nogil:
    cdef Guarding *guarding = <Guarding *>argument
    guarding.error = guarded_add(guarding.guarded, guarding.kind, fd[0], guarding.path, guarding.child, guarding.name)
    close(fd[0])
    fd[0] = -1


cdef int guard_add(Twin *twin, Guarded *guarded, int kind, int fd, const char *path, const char *child,
                   const char *name) noexcept nogil:
    """``guarded_add``: 0 or an errno."""
    cdef Guarding guarding
    cdef int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0)
    if copy < 0:
        return errno
    guarding.guarded, guarding.kind = guarded, kind
    guarding.path, guarding.child, guarding.name = path, child, name
    at_home(twin, add_here, &guarding, &copy)
    return guarding.error


cdef void settle_here(void *argument, int *fd) noexcept nogil:
    guarded_settle((<Guarding *>argument).guarded, (<Guarding *>argument).complete)


cdef void guard_settle(Twin *twin, Guarded *guarded, bint complete) noexcept nogil:
    """``guarded_settle``."""
    cdef Guarding guarding
    cdef int none = -1
    guarding.guarded, guarding.complete = guarded, complete
    at_home(twin, settle_here, &guarding, &none)


cdef void check_here(void *argument, int *fd) noexcept nogil:
    cdef Guarding *guarding = <Guarding *>argument
    guarding.error = guarded_check(guarding.guarded, fd[0])
    close(fd[0])
    fd[0] = -1


cdef int guard_check(Twin *twin, Guarded *guarded, int fd) noexcept nogil:
    """``guarded_check``: 0 or an errno."""
    cdef Guarding guarding
    cdef int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0)
    if copy < 0:
        return errno
    guarding.guarded = guarded
    at_home(twin, check_here, &guarding, &copy)
    return guarding.error
