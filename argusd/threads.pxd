# Starting native threads.

from argusd.includes.pthread cimport pthread_t

cdef int thread_begin(pthread_t *thread, void *(*body)(void *) noexcept nogil, void *argument,
                      const char *name) noexcept nogil
