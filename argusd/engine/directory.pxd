# Bringing one directory in line with the file system.

from libc.stdint cimport uint32_t

from argusd.engine.core cimport Subscription
from argusd.engine.walk cimport Walk

cdef uint32_t wanted(const Subscription *subscription, bint quiet) noexcept nogil
cdef void step(Walk *walk, uint32_t node, uint32_t serial) noexcept nogil
cdef void drain_stack(Walk *walk) noexcept nogil
cdef void finish(Walk *walk, uint32_t top, uint32_t serial) noexcept nogil
