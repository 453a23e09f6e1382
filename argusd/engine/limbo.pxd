# Directories that are on the move.

from libc.stdint cimport uint32_t, uint64_t

from argusd._records cimport Buffer
from argusd.engine.core cimport Core, Limbo, Look, Root
from argusd.includes.linux cimport inotify_event

cdef enum:
    HELD_MAX = 4 * 1024 * 1024          # bytes of events held back for one moved directory or subject path

cdef struct Held:
    uint32_t node
    uint32_t serial
    uint64_t passed             # Core.event_passed when it came

cdef Limbo *limbo_push(Core *core, uint32_t node, uint32_t cookie) noexcept nogil
cdef void limbo_wait(Core *core, Limbo *limbo, bint watched) noexcept nogil
cdef void limbo_hold(Core *core, Limbo *limbo, uint32_t node, const inotify_event *event) noexcept nogil
cdef Limbo *limbo_of_wd(Core *core, int wd, const Root *root, uint32_t outside) noexcept nogil
cdef Limbo *limbo_any(Core *core) noexcept nogil
cdef void limbo_free_all(Core *core) noexcept nogil
cdef bint limbo_busy(Core *core) noexcept nogil
cdef bint limbo_claim(Core *core, Limbo *displaced, uint32_t cookie) noexcept nogil
cdef bint limbo_rival(Core *core, Limbo *displaced, uint32_t node) noexcept nogil
cdef void limbo_free(Core *core, Limbo *limbo) noexcept nogil
cdef Buffer limbo_take(Core *core, Limbo *limbo) noexcept nogil
cdef Limbo *limbo_of(Core *core, uint32_t node) noexcept nogil
cdef Limbo *limbo_by_cookie(Core *core, uint32_t cookie, const Root *root) noexcept nogil
cdef Limbo *stayed(Core *core, uint32_t node) noexcept nogil
cdef void confirm(Core *core, uint32_t node) noexcept nogil
cdef void origin_note(Core *core, uint32_t cookie, uint32_t parent, const char *name, size_t size) noexcept nogil
cdef uint64_t origin_of(Core *core, uint32_t cookie, const Root *root) noexcept nogil
cdef void displace(Core *core, uint32_t node, uint64_t origin) noexcept nogil
cdef Limbo *displaced_at(Core *core, uint32_t parent, const char *name, size_t size) noexcept nogil
cdef Limbo *displaced_by(Core *core, uint32_t claim, const Root *root) noexcept nogil
cdef Limbo *displaced_as(Core *core, uint32_t node) noexcept nogil
cdef bint went_back(Core *core, uint32_t node) noexcept nogil
cdef bint is_full(Core *core, const Buffer *events) noexcept nogil
cdef void hold(Core *core, Buffer *events, uint32_t node, const inotify_event *event) noexcept nogil
cdef bint comes_later(Core *core, const Limbo *limbo) noexcept nogil
cdef bint is_at(Core *core, const Look *look) noexcept nogil
