# What a subject path stands for, and the thread that brings the trees in line with the file system.

from argusd._tree cimport Core, Root
from argusd._walk cimport Walk

cdef int arm_root(Walk *walk, Root *root) noexcept nogil
cdef void *walker(void *argument) noexcept nogil
