# cython: language_level=3, boundscheck=False, wraparound=False
"""Starting native threads, which never touch Python."""

from argusd.includes.pthread cimport (
    SIG_SETMASK,
    pthread_create,
    pthread_setname_np,
    pthread_sigmask,
    sigfillset,
    sigset_t,
)


cdef int thread_begin(pthread_t *thread, void *(*body)(void *) noexcept nogil, void *argument,
                      const char *name) noexcept nogil:
    """0 or an errno. Signals are the main thread's, so that they are blocked in all others."""
    cdef sigset_t every, before
    cdef int error
    sigfillset(&every)
    pthread_sigmask(SIG_SETMASK, &every, &before)
    error = pthread_create(thread, NULL, body, argument)
    pthread_sigmask(SIG_SETMASK, &before, NULL)
    if not error:
        pthread_setname_np(thread[0], name)
    return error
