# The walker thread.

cdef void *walker(void *argument) noexcept nogil
