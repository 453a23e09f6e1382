# followMove subjects.

from argusd.engine.core cimport Core, Root
from argusd.engine.report cimport Reader

cdef bint is_deleted(const Root *root, const char *text, size_t size) noexcept nogil
cdef void go_beyond(Core *core, Root *root) noexcept nogil
cdef bint follow(Reader *reader, Root *root) noexcept nogil
