# Which walker does what: containers take turns, and what hangs holds up only what needs the same.

from libc.stdint cimport int64_t, uint32_t

from argusd.engine.core cimport Core, Job, Place, Ring, Root, Swap, Worker

cdef bint is_busy(const Root *root) noexcept nogil
cdef bint ring_push(Ring *ring, uint32_t node, uint32_t serial) noexcept nogil
cdef Job ring_pop(Ring *ring) noexcept nogil
cdef bint job_queue(Core *core, Place *place, uint32_t node, uint32_t serial) noexcept nogil
cdef bint job_take(Core *core, Job *job, Root **root) noexcept nogil
cdef void jobs_drop(Core *core, Place *place) noexcept nogil
cdef void root_queue(Core *core, Root *root) noexcept nogil
cdef void root_unqueue(Core *core, Root *root) noexcept nogil
cdef Root *root_take(Core *core) noexcept nogil
cdef Swap *swap_take(Core *core, Root **root) noexcept nogil
cdef void piece_begin(Worker *worker, Root *root) noexcept nogil
cdef void piece_end(Worker *worker) noexcept nogil
cdef int64_t pieces_check(Core *core, bint *wanted) noexcept nogil
