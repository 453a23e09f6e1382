# What waits, in the order in which its time comes, and what is found by a number. Both are parts of what they hold.

from libc.stdint cimport int64_t, uint32_t, uint64_t

# A part of something that waits in at most one queue.
cdef struct Item:
    void *owner
    Queue *queue                # NULL: in none
    Item *next
    Item *prev
    uint64_t fence              # mark behind which its time comes; 0: none is placed
    int64_t until_ns            # when that mark may be placed, by the monotonic clock

cdef struct Queue:
    Item *first
    Item *last

# A part of something that is found by ``number``; several may have the same.
cdef struct Key:
    void *owner
    uint64_t number
    Key *next                   # of the same bucket

cdef struct Index:
    Key **buckets
    uint32_t capacity           # a power of two, or 0
    uint32_t count

cdef void queue_push(Queue *queue, Item *item) noexcept nogil
cdef void queue_leave(Item *item) noexcept nogil
cdef void queue_return(Queue *queue, Queue *before) noexcept nogil
cdef bint index_add(Index *index, Key *key, uint64_t number, void *owner) noexcept nogil
cdef void index_remove(Index *index, Key *key) noexcept nogil
cdef Key *index_find(const Index *index, uint64_t number) noexcept nogil
cdef Key *index_next(const Key *key) noexcept nogil

cdef inline uint64_t of_node(uint32_t node, uint32_t serial) noexcept nogil:
    """The number of a node in an index: its index in the arena may be used again, with another serial number."""
    return <uint64_t>serial << 32 | node
