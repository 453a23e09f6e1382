# Subject paths that are guarded instead of watched.

from argusd._records cimport Buffer
from argusd.engine.core cimport Root
from argusd.engine.walk cimport Walk

# What a look-up of a subject path has found; a descriptor that there is not is -1, all are O_PATH.
cdef struct Finding:
    int fd                          # what is there
    bint directory
    int parent_fd                   # the directory of the last name
    const char *name                # the last name
    const Buffer *real              # the path without links, from the container's root

cdef int guard_root(Walk *walk, Root *root, const Finding *finding) noexcept nogil
