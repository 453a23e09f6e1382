# Mounts that come and go.

from libc.stdint cimport int64_t

from argusd.engine.core cimport Core, Place
from argusd.engine.walk cimport Walk

cdef int64_t mounts_due(const Core *core) noexcept nogil
cdef bint read_mounts(Walk *walk, int pid) noexcept nogil
cdef bint read_all_mounts(Walk *walk, int pid) noexcept nogil
cdef bint next_mount(const Walk *walk, size_t *at, char *point, size_t *size) noexcept nogil
cdef void mounts_check(Walk *walk) noexcept nogil
cdef void mounts_remember(Walk *walk, Place *place) noexcept nogil
