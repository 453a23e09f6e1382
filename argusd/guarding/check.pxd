# Seeing that a guard works.

from argusd.guarding.guards cimport Guarded

cdef int guarded_check(Guarded *guarded, int fd) noexcept nogil
