# Directories and subject paths that could not be watched for the want of something.

from libc.stdint cimport int64_t, uint32_t

from argusd.engine.core cimport Core, Root

cdef void starve(Core *core, uint32_t node, int error) noexcept nogil
cdef void starve_root(Core *core, Root *root, int error) noexcept nogil
cdef void starved_settle(Core *core) noexcept nogil
cdef int64_t starved_due(Core *core, int64_t now_ns) noexcept nogil
cdef bint share_is_used(const Core *core, const Root *root) noexcept nogil
cdef uint32_t share_read(int percent) noexcept nogil
