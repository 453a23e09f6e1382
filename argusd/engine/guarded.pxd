# Subject paths that are guarded instead of watched.

from argusd.engine.core cimport Root
from argusd.engine.walk cimport Walk
from argusd.guarding.guards cimport Finding

cdef int guard_root(Walk *walk, Root *root, const Finding *finding) noexcept nogil
cdef void unguard_root(Walk *walk, Root *root) noexcept nogil
