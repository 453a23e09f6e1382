# The directories that subject paths lead through.

from argusd.engine.core cimport Anchor, Core, Root

cdef Anchor *anchor_first(Core *core, int wd) noexcept nogil
cdef Anchor *anchor_add(Core *core, Root *root, int wd, const char *name, size_t size, bint last) noexcept nogil
cdef void anchors_drop(Core *core, Root *root, bint all) noexcept nogil
cdef void anchors_lose(Core *core, int wd) noexcept nogil
cdef void root_end(Core *core, Root *root) noexcept nogil
