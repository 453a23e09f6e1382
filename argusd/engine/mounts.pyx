# cython: language_level=3, boundscheck=False, wraparound=False
"""Mounts that come and go: inotify does not tell of them.

/proc/PID/mountinfo could be polled for changes, but an open descriptor on it keeps the container's whole mount
namespace alive. So it is read now and then and compared. A mount that came over a watched directory, or went from
there, has the subject paths of the container looked up again, and the directory looked at again.
"""

from libc.stdint cimport uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memcmp, memcpy

from argusd._records cimport buffer_room
from argusd.engine.core cimport NODE_CREATED, Core, Place, Root, Subscription, core_lock, core_unlock
from argusd.engine.opening cimport process_open
from argusd.engine.tree cimport node_find
from argusd.engine.work cimport job_push, root_push
from argusd.includes.linux cimport O_RDONLY, close, memmem, read

cdef enum:
    MOUNTS_MAX = 4 * 1024 * 1024    # bytes of mountinfo that are looked at
    POINT_FIELD = 4                 # of a line of mountinfo, counted from 0: the mount point


cdef bint read_mounts(Walk *walk, int pid) noexcept nogil:
    """Read the process' mountinfo into walk.mounts."""
    cdef ssize_t size = 1
    cdef int fd = process_open(pid, b"mountinfo", O_RDONLY)
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


cdef void tell_changes(Core *core, const Place *place, const char *lines, size_t size,
                       const char *others, size_t others_size) noexcept nogil:
    """Go through the lines that are not among the others. With the lock held."""
    cdef char point[4096]
    cdef const char *end = lines + size
    cdef const char *stop
    cdef size_t length
    while lines < end:
        stop = <const char *>memchr(lines, c'\n', <size_t>(end - lines))
        if stop == NULL:
            return
        if memmem(others, others_size, lines, <size_t>(stop - lines) + 1) == NULL:
            length = mount_point(lines, <size_t>(stop - lines), point)
            if length:
                tell_point(core, place, point, length)
        lines = stop + 1


cdef void keep(Walk *walk, Place *place) noexcept nogil:
    """Remember what was read. With the lock held."""
    cdef char *copy = <char *>malloc(walk.mounts.size + 1)
    if copy == NULL:
        return
    memcpy(copy, walk.mounts.data, walk.mounts.size)
    free(place.mounts)
    place.mounts = copy
    place.mounts_size = walk.mounts.size


cdef void compare(Walk *walk, Place *place) noexcept nogil:
    """Take in what was read. With the lock held."""
    cdef Core *core = walk.core
    if place.mounts != NULL:
        if place.mounts_size == walk.mounts.size and memcmp(place.mounts, walk.mounts.data, place.mounts_size) == 0:
            return
        tell_changes(core, place, place.mounts, place.mounts_size, walk.mounts.data, walk.mounts.size)
        tell_changes(core, place, walk.mounts.data, walk.mounts.size, place.mounts, place.mounts_size)
    keep(walk, place)


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


cdef Subscription *next_unchecked(Core *core, unsigned long long round) noexcept nogil:
    cdef Subscription *subscription = core.subscriptions
    while subscription != NULL and subscription.place.round == round:
        subscription = subscription.next
    return subscription


cdef void mounts_check(Walk *walk, unsigned long long round) noexcept nogil:
    """Look at the mounts of every container that is watched, once."""
    cdef Core *core = walk.core
    cdef Subscription *subscription
    cdef bint done
    while True:
        core_lock(core)
        subscription = next_unchecked(core, round)
        if subscription != NULL:
            subscription.place.round = round
            subscription.users += 1
        core_unlock(core)
        if subscription == NULL:
            return
        done = read_mounts(walk, subscription.place.pid)
        core_lock(core)
        if done and not subscription.cancelled:
            compare(walk, subscription.place)
        subscription.users -= 1
        core_unlock(core)
