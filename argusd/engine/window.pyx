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
from argusd.engine.tree cimport node_is
from argusd.includes.linux cimport IN_ACCESS, IN_CLOSE_NOWRITE


cdef enum:
    UNKNOWN_READS = 1 << 30


cdef Window *window_open(Core *core, uint32_t node) noexcept nogil:
    cdef Window *window = <Window *>calloc(1, sizeof(Window))
    if window == NULL:
        return NULL
    window.node = node
    window.serial = core.nodes[node].serial
    window.next = core.windows
    core.windows = window
    core.nodes[node].flags |= NODE_WINDOW
    return window


cdef Window *window_find(Core *core, uint32_t node) noexcept nogil:
    cdef Window *window = core.windows
    while window != NULL and (window.node != node or window.serial != core.nodes[node].serial):
        window = window.next
    return window


cdef void rescan_window(Core *core, uint32_t node) noexcept nogil:
    cdef Window *window = window_find(core, node)
    if window == NULL:
        window = window_open(core, node)
        if window != NULL:
            window.repair = True
    else:
        window.fence = 0                # there is one more listing now


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
    cdef Window **link = &core.windows
    cdef uint32_t i
    while link[0] != window:
        link = &link[0].next
    link[0] = window.next
    if node_is(core, window.node, window.serial):
        core.nodes[window.node].flags &= <unsigned short>~NODE_WINDOW
    for i in range(window.count):
        free(window.names[i].bytes)
    free(window.names)
    free(window.index)
    free(window)


cdef Echo *echo_expect(Core *core, void *walk, int wd, const char *name) noexcept nogil:
    """One listing is about to start: expect its events on ``wd``, for the entry ``name`` or (NULL) itself."""
    cdef Echo *echo = <Echo *>calloc(1, sizeof(Echo))
    if echo == NULL:
        return NULL
    echo.walk = walk
    echo.wd = wd
    if name != NULL:
        echo.name = strdup(name)
    echo.opens = 1
    echo.closes = 1
    echo.accesses = UNKNOWN_READS       # until the listing says how often it read
    echo.next = core.echoes
    core.echoes = echo
    return echo


cdef bint echo_drop(Core *core, int wd, uint32_t mask, const char *name) noexcept nogil:
    """Is this event one that our own listing caused? Counts it off if so."""
    cdef Echo *echo = core.echoes
    cdef int *left
    while echo != NULL:
        if echo.wd == wd and ((echo.name == NULL) == (name == NULL)) and (name == NULL or strcmp(echo.name, name) == 0):
            left = &echo.opens
            if mask & IN_ACCESS:
                left = &echo.accesses
            elif mask & IN_CLOSE_NOWRITE:
                left = &echo.closes
            if left[0] > 0:
                left[0] -= 1
                return True
        echo = echo.next
    return False


cdef void echoes_end(Core *core, void *walk, int reads) noexcept nogil:
    """A walk's listing, which read the directory so many times, is over: a mark behind it ends what it expected."""
    cdef Echo *echo = core.echoes
    while echo != NULL:
        if echo.fence == 0 and echo.walk == walk:
            echo.accesses = max(0, reads - (UNKNOWN_READS - echo.accesses))
            echo.fence = fence_place(core)
        echo = echo.next


cdef void echoes_expire(Core *core) noexcept nogil:
    cdef Echo **link = &core.echoes
    cdef Echo *echo
    while link[0] != NULL:
        echo = link[0]
        if echo.fence and echo.fence <= core.fence_passed:
            link[0] = echo.next
            free(echo.name)
            free(echo)
        else:
            link = &echo.next
