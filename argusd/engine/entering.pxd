# The two ways into a container.

from argusd.engine.core cimport Core, Place

cdef enum:
    WAY_OPENAT2 = 0
    WAY_SETNS = 1

cdef enum:
    DENIED_NOTHING = 0
    DENIED_ROOT = 1                 # the root of the process, or its mount namespace, is closed to us
    DENIED_ENTER = 2                # they are open, but we may not enter

# What one thread needs in order to look paths up in a container. Between two walks nothing of a container is open.
cdef struct Entrance:
    int way
    bint shared                     # the thread could not get a working directory and root of its own
    int denied                      # DENIED_*, when entrance_open or a look-up has failed with EACCES or EPERM
    int root_fd                     # the container's root, -1 when not open
    int space_fd                    # setns only: its mount namespace, -1 when that is our own
    int home_space_fd               # our own mount namespace and root: the way back
    int home_root_fd
    int home_fd                     # the working directory that the thread had

cdef int openat2_missing() noexcept nogil
cdef int entrance_init(Entrance *entrance, int way, bint apart) noexcept nogil
cdef void entrance_free(Entrance *entrance) noexcept nogil
cdef int open_inside(Entrance *entrance, int space, int directory, const char *name) noexcept nogil
cdef int entrance_open(Entrance *entrance, Core *core, Place *place) noexcept nogil
cdef void entrance_close(Entrance *entrance) noexcept nogil
cdef int open_path(Entrance *entrance, const char *path) noexcept nogil
cdef int open_plain_path(Entrance *entrance, const char *path) noexcept nogil
cdef int open_name(Entrance *entrance, int directory, const char *name) noexcept nogil
cdef int open_below(Entrance *entrance, int directory, const char *names) noexcept nogil
