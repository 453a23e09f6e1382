# Looking into containers: opening their paths, listing directories, arming watches.

from libc.stdint cimport uint32_t, uint64_t

from argusd._records cimport Buffer
from argusd._tree cimport Core, Job, Root

cdef enum:
    CHAIN = 16                      # directories kept open during a walk, so that a child is opened from its parent

# One thread's walk. Nothing stays open in it between two calls of walk_root() or walk_job().
cdef struct Walk:
    Core *core
    Root *root                      # of the tree that the descriptors belong to
    int place_fd                    # the container's root, -1 when not open
    int chain_count
    uint32_t chain_node[CHAIN]
    uint32_t chain_serial[CHAIN]
    int chain_fd[CHAIN]
    Job *stack
    uint32_t stack_count
    uint32_t stack_capacity
    char *entries
    Buffer path
    int error                       # ENOSPC or ENOMEM: the kernel has no more watches to give
    bint initial                    # the first walk of a subscription: errors are the caller's to tell

cdef int walk_init(Walk *walk, Core *core) noexcept nogil
cdef void walk_free(Walk *walk) noexcept nogil
cdef int walk_root(Walk *walk, Root *root) noexcept nogil
cdef void walk_job(Walk *walk, uint32_t node, uint32_t serial) noexcept nogil
cdef void *walker(void *argument) noexcept nogil
cdef bint openat2_works() noexcept nogil
cdef int place_open(int pid, int pidfd) noexcept nogil
