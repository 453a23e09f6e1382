# What an event means for a tree.

from libc.stdint cimport uint32_t, uint64_t

from argusd._records cimport Buffer
from argusd.engine.core cimport Core, Limbo, Look, Root, Window
from argusd.engine.report cimport Reader
from argusd.includes.linux cimport inotify_event

cdef void window_settle(Reader *reader, Window *window) noexcept nogil
cdef bint take_over(Reader *reader, Look *look) noexcept nogil
cdef void expire(Reader *reader, Limbo *limbo) noexcept nogil
cdef void end_node(Core *core, uint32_t node) noexcept nogil
cdef void node_event(Reader *reader, uint32_t node, const inotify_event *event) noexcept nogil
