# cython: language_level=3, boundscheck=False, wraparound=False
"""What a listing of our own leaves to be sorted out among the events around it.

Facts about inotify that make this necessary:

* A directory can be filled before its watch stands. What is found inside by a listing may or may not have an event in
  the queue. A Window collects the names of the listing and of the events, until a mark placed behind the listing has
  come out of the queue; whatever was there before the watch is then known exactly.
* A listing makes IN_OPEN, IN_ACCESS and IN_CLOSE_NOWRITE on the directory and on its entry in the parent, without any
  sign of who caused them. An Echo says how many of each to drop before the mark.
"""

from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, strcmp, strdup

from argusd.engine.core cimport NODE_WINDOW, fence_place, name_hash
from argusd.engine.queues cimport (
    Item,
    Key,
    index_add,
    index_find,
    index_next,
    index_remove,
    of_node,
    queue_leave,
    queue_push,
)
from argusd.includes.linux cimport IN_ACCESS, IN_CLOSE_NOWRITE


cdef enum:
    UNKNOWN_READS = 1 << 30


cdef Window *window_open(Core *core, uint32_t node) noexcept nogil:
    cdef Window *window = <Window *>calloc(1, sizeof(Window))
    if window == NULL:
        return NULL
    window.node = node
    window.serial = core.nodes[node].serial
    window.due.owner = window
    if not index_add(&core.windows, &window.by_node, of_node(node, window.serial), window):
        free(window)
        return NULL
    core.nodes[node].flags |= NODE_WINDOW
    return window


cdef Window *window_find(Core *core, uint32_t node) noexcept nogil:
    cdef Key *key
    if not core.nodes[node].flags & NODE_WINDOW:
        return NULL
    key = index_find(&core.windows, of_node(node, core.nodes[node].serial))
    return <Window *>key.owner if key != NULL else NULL


cdef void window_due(Core *core, Window *window) noexcept nogil:
    """The listing is over: a mark behind it ends the window."""
    window.due.fence = fence_place(core)
    queue_push(&core.windows_due, &window.due)


cdef void window_drop(Core *core, uint32_t node) noexcept nogil:
    """The directory is gone, or nothing that was made in it can be unknown: what its listing finds is not needed."""
    cdef Window *window = window_find(core, node)
    if window != NULL:
        window_free(core, window)


cdef void rescan_window(Core *core, uint32_t node) noexcept nogil:
    cdef Window *window = window_find(core, node)
    if window == NULL:
        window = window_open(core, node)
        if window != NULL:
            window.repair = True
            core.repair_windows += 1
    else:
        queue_leave(&window.due)        # there is one more listing now


cdef Name *window_name(Core *core, Window *window, const char *name, size_t size) noexcept nogil:
    cdef uint32_t at
    cdef Name *known
    if window.index_capacity == 0:
        return NULL
    at = <uint32_t>name_hash(core, 0, name, size) & (window.index_capacity - 1)
    while window.index[at]:
        known = &window.names[window.index[at] - 1]
        if known.size == size and memcmp(known.bytes, name, size) == 0:
            return known
        at = (at + 1) & (window.index_capacity - 1)
    return NULL


cdef bint index_grow(Core *core, Window *window) noexcept nogil:
    cdef uint32_t capacity = window.index_capacity * 2 if window.index_capacity else 64
    cdef uint32_t *index = <uint32_t *>calloc(capacity, sizeof(uint32_t))
    cdef uint32_t i, at
    if index == NULL:
        return False
    for i in range(window.count):
        at = <uint32_t>name_hash(core, 0, window.names[i].bytes, window.names[i].size) & (capacity - 1)
        while index[at]:
            at = (at + 1) & (capacity - 1)
        index[at] = i + 1
    free(window.index)
    window.index = index
    window.index_capacity = capacity
    return True


cdef Name *window_add(Core *core, Window *window, const char *name, size_t size, bint directory) noexcept nogil:
    """Add a name that the window does not know yet; NULL when memory ran out."""
    cdef uint32_t at, capacity
    cdef Name *grown
    if (window.count + 1) * 2 > window.index_capacity and not index_grow(core, window):
        return NULL
    if window.count == window.capacity:
        capacity = window.capacity * 2 if window.capacity else 32
        grown = <Name *>realloc(window.names, capacity * sizeof(Name))
        if grown == NULL:
            return NULL
        window.names = grown
        window.capacity = capacity
    grown = &window.names[window.count]
    grown.bytes = <char *>malloc(size + 1)
    if grown.bytes == NULL:
        return NULL
    memcpy(grown.bytes, name, size)
    grown.bytes[size] = 0
    grown.size = <unsigned short>size
    grown.directory = directory
    grown.seen = False
    window.count += 1
    at = <uint32_t>name_hash(core, 0, name, size) & (window.index_capacity - 1)
    while window.index[at]:
        at = (at + 1) & (window.index_capacity - 1)
    window.index[at] = window.count
    return grown


cdef void window_free(Core *core, Window *window) noexcept nogil:
    cdef uint32_t i
    queue_leave(&window.due)
    index_remove(&core.windows, &window.by_node)
    core.nodes[window.node].flags &= <unsigned short>~NODE_WINDOW
    core.repair_windows -= window.repair
    if core.repair and core.repair_windows == 0:
        fence_place(core)               # the reader ends the repair when it comes by
    for i in range(window.count):
        free(window.names[i].bytes)
    free(window.names)
    free(window.index)
    free(window)


cdef void windows_free(Core *core) noexcept nogil:
    """Free all windows."""
    cdef uint32_t i = 0
    while core.windows.count:
        if core.windows.buckets[i] == NULL:
            i += 1
        else:
            window_free(core, <Window *>core.windows.buckets[i].owner)


cdef Echo *echo_expect(Core *core, void *walk, int wd, const char *name) noexcept nogil:
    """One listing is about to start: expect its events on ``wd``, for the entry ``name`` or (NULL) itself."""
    cdef Echo *echo = <Echo *>calloc(1, sizeof(Echo))
    if echo == NULL:
        return NULL
    if not index_add(&core.echoes, &echo.by_wd, <uint64_t>wd, echo):
        free(echo)
        return NULL
    echo.walk = walk
    echo.wd = wd
    if name != NULL:
        echo.name = strdup(name)
    echo.opens = 1
    echo.closes = 1
    echo.accesses = UNKNOWN_READS       # until the listing says how often it read
    echo.due.owner = echo
    queue_push(&core.echoes_open, &echo.due)
    return echo


cdef bint echo_drop(Core *core, int wd, uint32_t mask, const char *name) noexcept nogil:
    """Is this event one that our own listing caused? Counts it off if so."""
    cdef Key *key = index_find(&core.echoes, <uint64_t>wd)
    cdef Echo *echo
    cdef int *left
    while key != NULL:
        echo = <Echo *>key.owner
        if (echo.name == NULL) == (name == NULL) and (name == NULL or strcmp(echo.name, name) == 0):
            left = &echo.opens
            if mask & IN_ACCESS:
                left = &echo.accesses
            elif mask & IN_CLOSE_NOWRITE:
                left = &echo.closes
            if left[0] > 0:
                left[0] -= 1
                return True
        key = index_next(key)
    return False


cdef void echoes_end(Core *core, void *walk, int reads) noexcept nogil:
    """A walk's listing, which read the directory so many times, is over: a mark behind it ends what it expected."""
    cdef Item *item = core.echoes_open.first
    cdef Item *after
    cdef Echo *echo
    while item != NULL:
        after = item.next
        echo = <Echo *>item.owner
        if echo.walk == walk:
            echo.accesses = max(0, reads - (UNKNOWN_READS - echo.accesses))
            item.fence = fence_place(core)
            queue_push(&core.echoes_due, item)
        item = after


cdef void echo_free(Core *core, Echo *echo) noexcept nogil:
    queue_leave(&echo.due)
    index_remove(&core.echoes, &echo.by_wd)
    free(echo.name)
    free(echo)


cdef void echoes_expire(Core *core, uint64_t passed) noexcept nogil:
    """Expect nothing more of the listings that were over by that mark."""
    while core.echoes_due.first != NULL and core.echoes_due.first.fence <= passed:
        echo_free(core, <Echo *>core.echoes_due.first.owner)


cdef void echoes_free(Core *core) noexcept nogil:
    """Free all echoes."""
    while core.echoes_open.first != NULL:
        echo_free(core, <Echo *>core.echoes_open.first.owner)
    echoes_expire(core, ~<uint64_t>0)
