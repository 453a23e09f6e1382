# What a listing of our own leaves to be sorted out among the events around it.

from libc.stdint cimport uint32_t, uint64_t

from argusd.engine.core cimport Core, Echo, Name, Window

cdef Window *window_open(Core *core, uint32_t node) noexcept nogil
cdef Window *window_find(Core *core, uint32_t node) noexcept nogil
cdef void rescan_window(Core *core, uint32_t node) noexcept nogil
cdef Name *window_name(Core *core, Window *window, const char *name, size_t size) noexcept nogil
cdef Name *window_add(Core *core, Window *window, const char *name, size_t size, bint directory) noexcept nogil
cdef void window_due(Core *core, Window *window) noexcept nogil
cdef void window_drop(Core *core, uint32_t node) noexcept nogil
cdef void windows_free(Core *core) noexcept nogil
cdef void window_free(Core *core, Window *window) noexcept nogil
cdef Echo *echo_expect(Core *core, void *walk, int wd, const char *name) noexcept nogil
cdef bint echo_drop(Core *core, int wd, uint32_t mask, const char *name) noexcept nogil
cdef void echoes_end(Core *core, void *walk, int reads) noexcept nogil
cdef void echoes_expire(Core *core, uint64_t passed) noexcept nogil
cdef void echoes_free(Core *core) noexcept nogil
