# What the reader and the walker have for each other, and for Python.

from libc.stdint cimport int64_t, uint32_t, uint64_t

from argusd.engine.core cimport Core, Identity, Job, Look, Retry, Ring, Root, Swap

cdef void retry_push(Core *core, uint32_t node) noexcept nogil
cdef bint retry_stands(Core *core, const Retry *retry) noexcept nogil
cdef void retry_free(Core *core, Retry *retry) noexcept nogil
cdef Look *look_begin(Core *core, uint32_t node) noexcept nogil
cdef void look_found(Core *core, Look *look, int wd) noexcept nogil
cdef void look_disturb(Core *core, uint32_t node) noexcept nogil
cdef void look_free(Core *core, Look *look) noexcept nogil
cdef void look_end(Core *core, Look *look) noexcept nogil
cdef void proof_take(Core *core, uint32_t node, Identity *proven) noexcept nogil
cdef void drop_stale(Core *core) noexcept nogil
cdef int64_t place_due(Core *core, int64_t now_ns) noexcept nogil
cdef void job_push(Core *core, uint32_t node) noexcept nogil
cdef void root_push(Core *core, Root *root) noexcept nogil
cdef void root_armed(Core *core, Root *root) noexcept nogil
cdef void root_unsettle(Core *core, Root *root) noexcept nogil
cdef void root_settled(Core *core, Root *root) noexcept nogil
cdef void swap_push(Core *core, uint32_t node) noexcept nogil
cdef void swap_due(Core *core, Swap *swap) noexcept nogil
cdef void swap_free(Core *core, Swap *swap) noexcept nogil
cdef void notice_push_path(Core *core, int kind, int subscription, int error, long number,
                           const char *path) noexcept nogil
cdef void notice_push(Core *core, int kind, int subscription, int error, long number, uint32_t node) noexcept nogil
cdef void tell_python(Core *core) noexcept nogil
cdef void recent_add(Core *core, uint64_t hashed) noexcept nogil
cdef uint64_t told_hash(Core *core, uint32_t node, const char *name, size_t size) noexcept nogil
cdef bint recent_has(Core *core, uint32_t node, const char *name, size_t size) noexcept nogil
cdef void core_free(Core *core) noexcept nogil
