# Which files and directories are marked in a group, and for how many guards.

from libc.stdint cimport uint32_t, uint64_t

from argusd.guarding.asking cimport Asked
from argusd.guarding.table cimport Group

cdef int mark_set(Group *group, int fd, uint64_t device, uint64_t inode, uint32_t bits, bint children) noexcept nogil
cdef int mark_again(Group *group, int fd, uint32_t bits, bint children) noexcept nogil
cdef void mark_drop(Group *group, int fd, uint64_t device, uint64_t inode, uint32_t bits,
                    bint children) noexcept nogil
cdef void marks_free(Group *group) noexcept nogil
cdef void stray_found(Group *group, Asked *asked) noexcept nogil
cdef bint strays_wait(Group *group) noexcept nogil
cdef void strays_clear(Group *group) noexcept nogil
