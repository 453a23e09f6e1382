# The root of a container, which stays the one that it was.

from argusd.engine.core cimport Core, Place

cdef int root_open(Core *core, Place *place) noexcept nogil
cdef bint root_check(Core *core, Place *place, int subscription) noexcept nogil
