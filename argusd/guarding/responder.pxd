# The thread that answers the kernel.

cdef void *respond(void *argument) noexcept nogil
cdef size_t responder_size() noexcept nogil
