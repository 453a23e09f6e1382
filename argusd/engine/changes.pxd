# What an event means for a tree.

from libc.stdint cimport uint32_t, uint64_t

from argusd._records cimport Buffer
from argusd.engine.core cimport Core, Limbo, Look, Root, Window
from argusd.engine.report cimport Reader
from argusd.includes.linux cimport inotify_event

cdef struct Held:
    uint32_t node
    uint32_t serial
    uint64_t passed             # Core.event_passed when it came

cdef void window_settle(Reader *reader, Window *window) noexcept nogil
cdef void limbo_free(Core *core, Limbo *limbo) noexcept nogil
cdef void hold(Core *core, Buffer *events, uint32_t node, const inotify_event *event) noexcept nogil
cdef bint follow(Reader *reader, Root *root) noexcept nogil
cdef void bind(Core *core, uint32_t node, int wd) noexcept nogil
cdef bint is_at(Core *core, const Look *look) noexcept nogil
cdef bint take_over(Reader *reader, Look *look) noexcept nogil
cdef void expire(Reader *reader, Limbo *limbo) noexcept nogil
cdef void end_node(Core *core, uint32_t node) noexcept nogil
cdef void node_event(Reader *reader, uint32_t node, const inotify_event *event) noexcept nogil
