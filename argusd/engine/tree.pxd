# Trees of directories.

from libc.stdint cimport uint32_t

from argusd._records cimport Buffer
from argusd.engine.core cimport Core, Node, Root, Subscription

cdef bint node_index(Core *core, uint32_t node) noexcept nogil
cdef void node_unindex(Core *core, uint32_t node) noexcept nogil
cdef uint32_t node_find(Core *core, uint32_t parent, const char *name, size_t size) noexcept nogil
cdef uint32_t node_new(Core *core, uint32_t parent, Root *root, const char *name, size_t size) noexcept nogil
cdef bint is_older(Core *core, uint32_t node) noexcept nogil
cdef bint node_is(Core *core, uint32_t node, uint32_t serial) noexcept nogil
cdef bint is_known(Core *core, uint32_t node) noexcept nogil
cdef bint is_ahead(const Core *core, uint32_t mark) noexcept nogil
cdef uint32_t other_place(Core *core, uint32_t node, int wd) noexcept nogil
cdef void node_move(Core *core, uint32_t node, uint32_t parent, const char *name, size_t size) noexcept nogil
cdef void node_free_tree(Core *core, uint32_t node) noexcept nogil
cdef void node_replace(Core *core, uint32_t place, uint32_t node) noexcept nogil
cdef void node_free_below(Core *core, uint32_t node) noexcept nogil
cdef uint32_t node_next(Core *core, uint32_t top, uint32_t node) noexcept nogil
cdef uint32_t node_depth(Core *core, uint32_t node) noexcept nogil
cdef bint node_below(Core *core, uint32_t node, uint32_t ancestor) noexcept nogil
cdef void node_orphan(Core *core, uint32_t node) noexcept nogil
cdef void node_path(Core *core, uint32_t node, Buffer *out) noexcept nogil
cdef bint is_ignored(const Subscription *subscription, const char *name, size_t size) noexcept nogil
