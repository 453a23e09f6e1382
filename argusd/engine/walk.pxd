# Looking into containers: opening their paths, arming and listing directories.

from libc.stdint cimport uint32_t

from argusd._records cimport Buffer
from argusd.engine.core cimport Core, Identity, Job, Look, Root, Subscription
from argusd.engine.entering cimport Entrance
from argusd.twins cimport Twin, twin_body

cdef enum:
    CHAIN = 32                      # directories kept open during a walk, so that a child is opened from its parent
    ENTRIES = 64 * 1024             # bytes of directory entries read at once

# One thread's walk. Between two pieces of work nothing stays open in it.
cdef struct Walk:
    Twin *twin                      # in which it runs
    Core *core
    Root *root                      # of the tree that the descriptors belong to
    Entrance entrance               # into the container
    int chain_count
    uint32_t chain_node[CHAIN]
    uint32_t chain_serial[CHAIN]
    int chain_fd[CHAIN]
    Job *stack
    uint32_t stack_count
    uint32_t stack_capacity
    Job *later                      # of a first walk: what the reader is to take over before it is gone on with
    uint32_t later_count
    uint32_t later_capacity
    char *entries
    Buffer path
    Buffer top_path
    Buffer mounts
    Identity proven                 # which file stands at the directory that is looked at, where that was found out
    bint repair                     # the next listing is of a directory that was watched before events were lost
    uint32_t stacked                # entries of the stack before what it adds
    int looks                       # left to the reader since it was last waited for
    int error                       # ENOSPC or ENOMEM: the kernel has no more watches to give
    Buffer unreadable               # path of the first directory that we may not read or watch
    bint initial                    # the first walk of a subscription: errors are the caller's to tell

cdef void walk_twin(Twin *twin, Core *core, twin_body body, void *argument) noexcept nogil
cdef int walk_init(Walk *walk, Core *core, Twin *twin) noexcept nogil
cdef void chain_push(Walk *walk, uint32_t node, uint32_t serial, int fd) noexcept nogil
cdef void walk_leave(Walk *walk) noexcept nogil
cdef void walk_free(Walk *walk) noexcept nogil
cdef int walk_enter(Walk *walk, Root *root) noexcept nogil
cdef int node_open(Walk *walk, uint32_t node, uint32_t serial) noexcept nogil
cdef int parent_open(Walk *walk, uint32_t node, uint32_t serial) noexcept nogil
cdef void put_off(Walk *walk, uint32_t node) noexcept nogil
cdef bint take_later(Walk *walk) noexcept nogil
cdef void wait_for_reader(Core *core) noexcept nogil
cdef bint is_absence(int error) noexcept nogil
cdef bint stack_push(Walk *walk, uint32_t node) noexcept nogil
cdef bint is_shortage(int error) noexcept nogil
cdef void failed(Walk *walk, uint32_t node, int error) noexcept nogil
cdef void lost(Walk *walk, Look *look, int error) noexcept nogil
