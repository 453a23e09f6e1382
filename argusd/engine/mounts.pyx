# cython: language_level=3, boundscheck=False, wraparound=False
"""Mounts that come and go: inotify does not tell of them.

/proc/PID/mountinfo could be polled for changes, but an open descriptor on it keeps the container's whole mount
namespace alive. So it is read now and then and compared, each container's at its own pace: one with thousands of mounts
costs much to look at, and must not make the looks at others rarer. A mount that came over a watched directory, or went
from there, has the subject paths of the container looked up again, and the directory looked at again.
"""

from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memchr, memcmp, memcpy
from posix.time cimport CLOCK_THREAD_CPUTIME_ID, clock_gettime, timespec

from argusd._records cimport buffer_room
from argusd.engine.core cimport (
    NODE_CREATED,
    NOTICE_MOUNTS,
    Core,
    Place,
    Root,
    Subscription,
    core_lock,
    core_unlock,
    monotonic_ns,
    name_hash,
)
from argusd.engine.entering cimport open_inside
from argusd.engine.opening cimport process_open
from argusd.engine.roots cimport root_check
from argusd.engine.tree cimport node_find
from argusd.engine.work cimport job_push, notice_push, root_push
from argusd.includes.linux cimport O_CLOEXEC, O_DIRECTORY, O_PATH, O_RDONLY, close, open, read

cdef enum:
    MOUNTS_MAX = 4 * 1024 * 1024    # bytes of mountinfo that are looked at
    MOUNTS_EVERY_NS = 1000000000    # between two looks at the mounts of a container, at the least
    REST = 1000                     # times what a look costs, until the next
    POINT_FIELD = 4                 # of a line of mountinfo, counted from 0: the mount point


cdef bint read_mounts(Walk *walk, int pid) noexcept nogil:
    """Read the process' mountinfo into walk.mounts: what is mounted below its root."""
    return read_listed(walk, process_open(pid, b"mountinfo", O_RDONLY))


cdef bint read_all_mounts(Walk *walk, int pid) noexcept nogil:
    """Likewise what is mounted in the whole of its namespace, with mount points from the namespace's root."""
    cdef int fd = -1, proc = open(b"/proc", O_PATH | O_DIRECTORY | O_CLOEXEC)
    cdef int space = process_open(pid, b"ns/mnt", O_RDONLY)
    if proc >= 0 and space >= 0:
        fd = open_inside(&walk.entrance, space, proc, b"thread-self/mountinfo")
    if proc >= 0:
        close(proc)
    if space >= 0:
        close(space)
    return read_listed(walk, fd)


cdef bint read_listed(Walk *walk, int fd) noexcept nogil:
    """Read mountinfo from a descriptor, which is closed."""
    cdef ssize_t size = 1
    if fd < 0:
        return False
    walk.mounts.size = 0
    while size > 0 and walk.mounts.size < MOUNTS_MAX and buffer_room(&walk.mounts, 16384):
        size = read(fd, walk.mounts.data + walk.mounts.size, 16384)
        if size > 0:
            walk.mounts.size += <size_t>size
    close(fd)
    return size == 0


cdef size_t mount_point(const char *line, size_t size, char *out) noexcept nogil:
    """The mount point of a line, its octal escapes undone; its length, 0 when there is none."""
    cdef const char *end = line + size
    cdef size_t length = 0
    cdef int field = 0
    while line < end and field < POINT_FIELD:
        if line[0] == c' ':
            field += 1
        line += 1
    while line < end and line[0] != c' ' and length < 4095:
        if line[0] == c'\\' and end - line > 3:
            out[length] = <char>(((line[1] - c'0') << 6) | ((line[2] - c'0') << 3) | (line[3] - c'0'))
            line += 4
        else:
            out[length] = line[0]
            line += 1
        length += 1
    return length


cdef bint next_mount(const Walk *walk, size_t *at, char *point, size_t *size) noexcept nogil:
    """Go through the mount points of what ``read_mounts`` has read; ``point`` has room for 4,096 bytes."""
    cdef const char *line = walk.mounts.data + at[0]
    cdef size_t length = line_size(line, walk.mounts.data + walk.mounts.size) if at[0] < walk.mounts.size else 0
    if length == 0:
        return False
    at[0] += length
    size[0] = mount_point(line, length - 1, point)
    return True


cdef void look_below(Core *core, Root *root, const char *point, size_t size) noexcept nogil:
    """Have a directory of a tree looked at again when a mount came or went there. With the lock held."""
    cdef uint32_t node = root.top
    cdef size_t at = root.real.size + 1, end
    if node == 0 or size <= at or memcmp(point + 1, root.real.data, root.real.size) != 0:
        return
    if root.real.size:
        if point[at] != c'/':
            return
        at += 1
    while node and at < size:
        end = at
        while end < size and point[end] != c'/':
            end += 1
        node = node_find(core, node, point + at, end - at)
        at = end + 1
    if node:
        core.nodes[node].flags &= <unsigned short>~NODE_CREATED     # what is in the mount is not new
        job_push(core, node)


cdef void tell_point(Core *core, const Place *place, const char *point, size_t size) noexcept nogil:
    cdef Subscription *subscription = core.subscriptions
    cdef int i
    while subscription != NULL:
        if subscription.place == place:
            for i in range(subscription.root_count):
                if not subscription.follow_move:
                    root_push(core, &subscription.roots[i])
                if subscription.recursive:
                    look_below(core, &subscription.roots[i], point, size)
        subscription = subscription.next


cdef void look_again(Core *core, const Place *place) noexcept nogil:
    """Have all paths of a container looked up again."""
    cdef Subscription *subscription
    cdef int i
    core_lock(core)
    subscription = core.subscriptions
    while subscription != NULL:
        if subscription.place == place:
            for i in range(subscription.root_count):
                root_push(core, &subscription.roots[i])
        subscription = subscription.next
    core_unlock(core)


cdef size_t line_size(const char *line, const char *end) noexcept nogil:
    """Bytes of a line with its newline, 0 when it has none."""
    cdef const char *stop = <const char *>memchr(line, c'\n', <size_t>(end - line))
    return <size_t>(stop - line) + 1 if stop != NULL else 0


cdef uint32_t *lines_index(Core *core, const char *lines, size_t size, uint32_t *last) noexcept nogil:
    """A hash table of where lines begin, plus 1; ``last`` is its greatest index. NULL when memory ran out."""
    cdef const char *end = lines + size
    cdef const char *line = lines
    cdef uint32_t *index
    cdef uint32_t capacity = 64, count = 0, at
    while line < end and line_size(line, end):
        count += 1
        line += line_size(line, end)
    while capacity < count * 2:
        capacity *= 2
    index = <uint32_t *>calloc(capacity, sizeof(uint32_t))
    last[0] = capacity - 1
    line = lines
    while index != NULL and line < end and line_size(line, end):
        at = <uint32_t>name_hash(core, 0, line, line_size(line, end)) & last[0]
        while index[at]:
            at = (at + 1) & last[0]
        index[at] = <uint32_t>(line - lines) + 1
        line += line_size(line, end)
    return index


cdef bint has_line(Core *core, const uint32_t *index, uint32_t last, const char *lines, size_t size,
                   const char *line, size_t length) noexcept nogil:
    cdef uint32_t at = <uint32_t>name_hash(core, 0, line, length) & last
    while index[at]:
        if index[at] - 1 + length <= size and memcmp(lines + index[at] - 1, line, length) == 0:
            return True
        at = (at + 1) & last
    return False


cdef void tell_changes(Core *core, const Place *place, const char *lines, size_t size,
                       const char *others, size_t others_size) noexcept nogil:
    """Go through the lines that are not among the others. They may be thousands: the lock is held for one at a time."""
    cdef char point[4096]
    cdef const char *end = lines + size
    cdef size_t length, point_size
    cdef uint32_t last
    cdef uint32_t *index = lines_index(core, others, others_size, &last)
    while index != NULL and lines < end:
        length = line_size(lines, end)
        if length == 0:
            break
        if not has_line(core, index, last, others, others_size, lines, length):
            point_size = mount_point(lines, length - 1, point)
            if point_size:
                core_lock(core)
                tell_point(core, place, point, point_size)
                core_unlock(core)
        lines += length
    free(index)


cdef void keep(Walk *walk, Place *place) noexcept nogil:
    """Remember what was read. With the lock held."""
    cdef char *copy = <char *>malloc(walk.mounts.size + 1)
    if copy == NULL:
        return
    memcpy(copy, walk.mounts.data, walk.mounts.size)
    free(place.mounts)
    place.mounts = copy
    place.mounts_size = walk.mounts.size


cdef void compare(Walk *walk, Place *place, bint doubt) noexcept nogil:
    """Take in what was read. Only the walker thread comes here, and nobody else replaces what is remembered.

    In ``doubt`` every mount may be a new one.
    """
    cdef Core *core = walk.core
    cdef size_t size
    cdef bint known
    core_lock(core)
    size = 0 if doubt else place.mounts_size
    known = place.mounts != NULL
    if not known:
        keep(walk, place)
    core_unlock(core)
    if not known or (size == walk.mounts.size and memcmp(place.mounts, walk.mounts.data, size) == 0):
        return
    tell_changes(core, place, place.mounts, place.mounts_size, walk.mounts.data, walk.mounts.size)
    tell_changes(core, place, walk.mounts.data, walk.mounts.size, place.mounts, size)
    core_lock(core)
    keep(walk, place)
    core_unlock(core)


cdef void mounts_remember(Walk *walk, Place *place) noexcept nogil:
    """Take the mounts as they are before the first walk: what comes while it goes on, or afterwards, is a change."""
    cdef Core *core = walk.core
    cdef bint known
    core_lock(core)
    known = place.mounts != NULL
    core_unlock(core)
    if known or not read_mounts(walk, place.pid):
        return
    core_lock(core)
    if place.mounts == NULL:
        keep(walk, place)
    core_unlock(core)


cdef int64_t mounts_due(const Core *core) noexcept nogil:
    """When the next container's mounts are to be looked at, 0 when none is watched. With the lock held."""
    cdef const Subscription *subscription = core.subscriptions
    cdef int64_t due_ns = 0
    while subscription != NULL:
        if due_ns == 0 or subscription.place.mounts_ns < due_ns:
            due_ns = max(<int64_t>1, subscription.place.mounts_ns)
        subscription = subscription.next
    return due_ns


cdef Subscription *next_due(Core *core, int64_t now_ns) noexcept nogil:
    cdef Subscription *subscription = core.subscriptions
    while subscription != NULL and subscription.place.mounts_ns > now_ns:
        subscription = subscription.next
    return subscription


cdef int64_t cost_ns() noexcept nogil:
    """What this thread has used of a processor, that is without the time in which others had it."""
    cdef timespec used
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used)
    return <int64_t>used.tv_sec * 1000000000 + used.tv_nsec


cdef void look(Walk *walk, Subscription *subscription) noexcept nogil:
    """Look at the mounts of one container, and note when to do so again, so that it never costs much."""
    cdef Core *core = walk.core
    cdef Place *place = subscription.place
    cdef int64_t begin_ns = cost_ns(), took_ns
    cdef bint doubt
    walk.mounts.size = 0
    core_lock(core)
    doubt = place.mounts_doubt
    place.mounts_doubt = False
    core_unlock(core)
    if root_check(core, place, subscription.number):
        look_again(core, place)
    # Process 1 sees only what is mounted below its root.
    if read_all_mounts(walk, place.pid) if place.root_left else read_mounts(walk, place.pid):
        compare(walk, place, doubt)
    elif walk.mounts.size >= MOUNTS_MAX and not place.mounts_told:
        place.mounts_told = True
        core_lock(core)
        notice_push(core, NOTICE_MOUNTS, subscription.number, 0, MOUNTS_MAX, 0)
        core_unlock(core)
    core_lock(core)
    took_ns = cost_ns() - begin_ns
    place.mounts_ns = monotonic_ns() + max(<int64_t>MOUNTS_EVERY_NS, min(took_ns, place.mounts_took_ns) * REST)
    place.mounts_took_ns = took_ns      # both, for one alone may be a bad moment of the machine
    core_unlock(core)


cdef void mounts_check(Walk *walk) noexcept nogil:
    """Look at the mounts of every container for which it is time."""
    cdef Core *core = walk.core
    cdef Subscription *subscription
    cdef int64_t now_ns = monotonic_ns()
    while True:
        core_lock(core)
        subscription = next_due(core, now_ns) if not core.stopping else NULL
        if subscription != NULL:
            subscription.users += 1
        core_unlock(core)
        if subscription == NULL:
            return
        look(walk, subscription)
        core_lock(core)
        subscription.users -= 1
        core_unlock(core)
