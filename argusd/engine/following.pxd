# followMove subjects.

from argusd.engine.core cimport Core, Root

cdef bint is_deleted(const Root *root, const char *text, size_t size) noexcept nogil
cdef void go_beyond(Core *core, Root *root) noexcept nogil
cdef bint follow(Core *core, Root *root) noexcept nogil
