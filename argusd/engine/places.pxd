# The containers that are watched.

from argusd.engine.core cimport Core, Place

cdef Place *place_join(Core *core, int pid, int pidfd, int *error) noexcept nogil
cdef void place_leave(Core *core, Place *place) noexcept nogil
