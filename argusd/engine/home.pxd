# What a walk has done in the daemon's own process, where its descriptors are.

from argusd.engine.core cimport Core, Root
from argusd.guarding.guards cimport Guarded
from argusd.twins cimport Twin

cdef int followed_copy(Twin *twin, Core *core, Root *root) noexcept nogil
cdef int followed_keep(Twin *twin, int fd) noexcept nogil
cdef void followed_close(Twin *twin, int number) noexcept nogil
cdef bint followed_moved(Twin *twin, Core *core, Root *root) noexcept nogil
cdef int guard_add(Twin *twin, Guarded *guarded, int kind, int fd, const char *path, const char *child,
                   const char *name) noexcept nogil
cdef void guard_settle(Twin *twin, Guarded *guarded, bint complete) noexcept nogil
cdef int guard_check(Twin *twin, Guarded *guarded, int fd) noexcept nogil
