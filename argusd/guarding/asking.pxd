# Who asks for what: one permission event.

from libc.stdint cimport int32_t, uint32_t, uint64_t

from argusd.guarding.table cimport Group
from argusd.includes.linux cimport statx_t

cdef enum:
    TEXT = 4096                     # bytes of a path that the kernel tells, at the most
    PARENT_UNASKED = 0
    PARENT_KNOWN = 1
    PARENT_UNKNOWN = 2
    PARENT_NONE = 3                 # of what is mounted, and asked for because of a mark of its own

cdef struct Asked:
    int32_t fd
    int32_t pid
    int event                       # OPEN or ACCESS
    uint32_t bit
    uint64_t device
    uint64_t inode
    uint64_t born                   # as Entry.born
    uint64_t mount
    bint directory
    bint nameless                   # the file has lost its name
    bint mounted                    # it was opened by a place on which it is mounted
    bint denied
    bint audit                      # of something that concerns the event
    int parent_pid                  # of the process, -1 when not asked for yet
    int stale_fd                    # to be closed after the answer, else -1
    int parent                      # PARENT_*
    uint64_t parent_device
    uint64_t parent_inode
    uint64_t parent_born
    int parent_fd                   # O_PATH descriptor, where it had to be looked up, else -1
    const char *name                # in its directory
    size_t name_size
    char text[TEXT + 16]            # where the file is, as the kernel tells it

cdef uint64_t birth(const statx_t *status) noexcept nogil
cdef bint ask_file(Asked *asked) noexcept nogil
cdef void ask_parent(Group *group, Asked *asked) noexcept nogil
