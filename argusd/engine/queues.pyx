# cython: language_level=3, boundscheck=False, wraparound=False
"""What waits, in the order in which its time comes, and what is found by a number.

A container can make any of these long: nothing here costs more when there is more of it. Marks in the kernel's queue
grow, and so do times, so a queue is in the order in which its items were pushed, and only its head is looked at.
Everything is under Core's lock.
"""

from libc.stdlib cimport calloc, free


cdef enum:
    INDEX_LEAST = 64            # buckets


cdef void queue_push(Queue *queue, Item *item) noexcept nogil:
    """Append an item, which leaves the queue where it was."""
    queue_leave(item)
    item.queue = queue
    item.next = NULL
    item.prev = queue.last
    if queue.last != NULL:
        queue.last.next = item
    else:
        queue.first = item
    queue.last = item


cdef void queue_leave(Item *item) noexcept nogil:
    cdef Queue *queue = item.queue
    if queue == NULL:
        return
    if item.prev != NULL:
        item.prev.next = item.next
    else:
        queue.first = item.next
    if item.next != NULL:
        item.next.prev = item.prev
    else:
        queue.last = item.prev
    item.queue = NULL


cdef void queue_return(Queue *queue, Queue *before) noexcept nogil:
    """Put all that is in ``before`` in front of what is in ``queue``."""
    cdef Item *item = before.first
    if item == NULL:
        return
    while item != NULL:
        item.queue = queue
        item = item.next
    before.last.next = queue.first
    if queue.first != NULL:
        queue.first.prev = before.last
    else:
        queue.last = before.last
    queue.first = before.first
    before.first = before.last = NULL


cdef inline uint32_t bucket(uint32_t capacity, uint64_t number) noexcept nogil:
    return <uint32_t>((number * <uint64_t>0x9E3779B97F4A7C15ULL) >> 32) & (capacity - 1)


cdef void index_resize(Index *index, uint32_t capacity) noexcept nogil:
    """Have another number of buckets; without memory those that there are get longer."""
    cdef Key **buckets = <Key **>calloc(capacity, sizeof(Key *))
    cdef Key *key
    cdef Key *after
    cdef uint32_t i, at
    if buckets == NULL:
        return
    for i in range(index.capacity):
        key = index.buckets[i]
        while key != NULL:
            after = key.next
            at = bucket(capacity, key.number)
            key.next = buckets[at]
            buckets[at] = key
            key = after
    free(index.buckets)
    index.buckets = buckets
    index.capacity = capacity


cdef bint index_add(Index *index, Key *key, uint64_t number, void *owner) noexcept nogil:
    """False when memory ran out."""
    cdef uint32_t at
    if index.count >= index.capacity:
        index_resize(index, index.capacity * 2 if index.capacity else INDEX_LEAST)
        if index.capacity == 0:
            return False
    key.owner = owner
    key.number = number
    at = bucket(index.capacity, number)
    key.next = index.buckets[at]
    index.buckets[at] = key
    index.count += 1
    return True


cdef void index_remove(Index *index, Key *key) noexcept nogil:
    """Forget a key; one that is in no index has no owner."""
    cdef Key **link
    if key.owner == NULL:
        return
    link = &index.buckets[bucket(index.capacity, key.number)]
    while link[0] != key:
        link = &link[0].next
    link[0] = key.next
    key.owner = NULL
    index.count -= 1
    if index.count == 0:
        free(index.buckets)
        index.buckets = NULL
        index.capacity = 0


cdef Key *index_find(const Index *index, uint64_t number) noexcept nogil:
    """The first key with this number; the others follow by ``index_next``."""
    cdef Key *key = index.buckets[bucket(index.capacity, number)] if index.capacity else NULL
    while key != NULL and key.number != number:
        key = key.next
    return key


cdef Key *index_next(const Key *key) noexcept nogil:
    cdef Key *other = key.next
    while other != NULL and other.number != key.number:
        other = other.next
    return other
