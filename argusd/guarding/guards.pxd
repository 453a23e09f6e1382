# Guards as the engine has them: one for each subject in each container.

from libc.stdint cimport uint32_t

from argusd._records cimport Lines
from argusd.guarding.groups cimport Gate
from argusd.guarding.reporter cimport GROUPS
from argusd.guarding.table cimport Entry, Subject
from argusd.guarding.vetting cimport Vetting

# Which step of making a guard has failed.
cdef enum:
    STEP_INIT = 0
    STEP_AUDIT = 1
    STEP_MARK = 2
    STEP_CHECK = 3
    STEP_KIND = 4

# One subject in one container.
cdef struct Guard:
    Gate *gate
    int number
    uint32_t bits                   # FAN_OPEN_PERM, FAN_ACCESS_PERM
    int init                        # the container's, which is the owner
    bint owner_allowed
    bint audit
    bint on
    const Lines *lines
    Subject *subjects[GROUPS]       # NULL when not needed yet
    int step                        # of the last failure

# One of its paths.
cdef struct Guarded:
    Guard *guard
    bint deny
    Vetting vetting
    bint foreign_told               # that it led to what is the node's
    Entry *entries                  # what it stands for
    Entry *found                    # what it is found to stand for, while it is looked up

cdef void guarded_look(Guarded *guarded, int root_fd, const char *mounts, size_t size, bint above) noexcept nogil
cdef int guarded_add(Guarded *guarded, int kind, int fd, const char *path, const char *child,
                     const char *name) noexcept nogil
cdef bint is_file(const Entry *entry, int fd) noexcept nogil
cdef void guarded_settle(Guarded *guarded, bint complete) noexcept nogil
cdef void guarded_end(Guarded *guarded) noexcept nogil
cdef void guards_switch(Gate *gate, Guard **guards, int on_count, int off_count) noexcept nogil
cdef int guard_end(Guard *guard) noexcept nogil
