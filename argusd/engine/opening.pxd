# Opening what is inside a container.

from libc.stdint cimport uint32_t, uint64_t

from argusd.engine.core cimport Core, Identity, Place

cdef int lookup(int directory, const char *path, int flags, unsigned long long resolve) noexcept nogil
cdef bint ended(int pidfd) noexcept nogil
cdef int process_open(int pid, const char *name, int flags) noexcept nogil
cdef uint64_t process_start(int pid) noexcept nogil
cdef bint has_ended(const Place *place) noexcept nogil
cdef int place_open(const Place *place) noexcept nogil
cdef int below(int directory, const char *name) noexcept nogil
cdef int step_below(int directory, const char *name, bint readable) noexcept nogil
cdef void barrier(int directory) noexcept nogil
cdef int add_watch(Core *core, int fd, uint32_t mask) noexcept nogil
cdef int watch_any(Core *core, int fd, uint32_t mask) noexcept nogil
cdef bint identify(int fd, Identity *identity) noexcept nogil
cdef bint same_file(const Identity *a, const Identity *b) noexcept nogil
