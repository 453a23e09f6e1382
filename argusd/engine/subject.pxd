# What a subject path stands for.

from argusd.engine.core cimport Root
from argusd.engine.walk cimport Walk

cdef int look_up(Walk *walk, Root *root) noexcept nogil
cdef int arm_root(Walk *walk, Root *root) noexcept nogil
