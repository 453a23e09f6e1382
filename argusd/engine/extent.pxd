# How far a tree reaches.

from libc.stdint cimport uint32_t

from argusd.engine.core cimport Core

cdef bint may_enter(Core *core, uint32_t parent, const char *name, size_t size) noexcept nogil
cdef void look_for(Core *core, uint32_t parent, const char *name, size_t size) noexcept nogil
cdef uint32_t unlisted(Core *core, uint32_t parent, const char *name, size_t size) noexcept nogil
cdef void fit(Core *core, uint32_t top, uint32_t before) noexcept nogil
cdef void bind(Core *core, uint32_t node, int wd) noexcept nogil
