# The walkers.

cdef void *foreman(void *argument) noexcept nogil
