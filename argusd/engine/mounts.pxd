# Mounts that come and go.

from argusd.engine.core cimport Place
from argusd.engine.walk cimport Walk

cdef void mounts_check(Walk *walk, unsigned long long round) noexcept nogil
cdef void mounts_remember(Walk *walk, Place *place) noexcept nogil
