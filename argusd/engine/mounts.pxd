# Mounts that come and go.

from libc.stdint cimport int64_t

from argusd.engine.core cimport Core, Place
from argusd.engine.walk cimport Walk

cdef int64_t mounts_due(const Core *core) noexcept nogil
cdef void mounts_check(Walk *walk) noexcept nogil
cdef void mounts_remember(Walk *walk, Place *place) noexcept nogil
