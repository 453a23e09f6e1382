# Mounts that come and go.

from argusd.engine.walk cimport Walk

cdef void mounts_check(Walk *walk, unsigned long long round) noexcept nogil
