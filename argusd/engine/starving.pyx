# cython: language_level=3, boundscheck=False, wraparound=False
"""Directories and subject paths that could not be watched for the want of watches, memory or descriptors.

Each container keeps its own in a ring, and they are tried again in turn: a few of each container, and more while that
succeeds. One container that wants a million watches so never stands before another that wants ten. A container that
has its share of the watches (-watch_share) is not tried before it has given some back.
"""

from libc.errno cimport EDQUOT
from libc.stdlib cimport atol

from argusd.engine.core cimport (
    NOTICE_LIMIT,
    NOTICE_SHARE,
    NOTICE_WATCHED,
    Job,
    Place,
    Subscription,
    monotonic_ns,
)
from argusd.engine.dispatch cimport ring_pop, ring_push
from argusd.engine.tree cimport node_is
from argusd.engine.work cimport job_push, notice_push, root_push
from argusd.includes.linux cimport O_CLOEXEC, O_RDONLY, close, open, read
from argusd.includes.pthread cimport pthread_cond_signal


cdef enum:
    TRIES_LEAST = 16            # of one container at once
    TRIES_MOST = 4096
    SWEEP_LEAST = 1024
    EVERY_NS = 1000000000       # between two tries without success
    SOON_NS = 20 * 1000 * 1000  # and after a success


cdef void begin(Core *core, Root *root, int error, uint32_t node) noexcept nogil:
    """Say once that something of this container is not watched, and see that it is tried again."""
    cdef Place *place = root.subscription.place
    cdef int kind = NOTICE_SHARE if error == EDQUOT else NOTICE_LIMIT
    place.starved_now += 1
    place.starved_most = max(place.starved_most, place.starved_now)
    place.starved_by = root.subscription.number
    core.starving += 1
    if not place.starved_told & (1 << kind):
        place.starved_told |= 1 << kind
        notice_push(core, kind, root.subscription.number, error, place.watches, node)
    if core.starved_ns == 0:
        core.starved_ns = monotonic_ns() + EVERY_NS
        pthread_cond_signal(&core.work)


cdef void sweep(Core *core, Place *place) noexcept nogil:
    """Take out the directories that are gone: others may be made and removed without end while there is no room."""
    cdef uint32_t left = place.starved.count
    cdef Job job
    while left:
        left -= 1
        job = ring_pop(&place.starved)
        if not node_is(core, job.node, job.serial) or not ring_push(&place.starved, job.node, job.serial):
            end_one(core, place)
    place.starved_limit = max(<uint32_t>SWEEP_LEAST, place.starved.count * 2)


cdef void starve(Core *core, uint32_t node, int error) noexcept nogil:
    """A directory could not be watched or listed: it is tried again."""
    cdef Root *root = core.nodes[node].root
    if root.subscription.place.starved.count >= max(<uint32_t>SWEEP_LEAST, root.subscription.place.starved_limit):
        sweep(core, root.subscription.place)
    if not ring_push(&root.subscription.place.starved, node, core.nodes[node].serial):
        core.forgotten += 1
        return
    begin(core, root, error, node)


cdef void starve_root(Core *core, Root *root, int error) noexcept nogil:
    """A subject path could not be looked up or watched: it is looked up again."""
    if root.starved:
        return
    root.starved = True
    core.starving_roots += 1
    begin(core, root, error, root.top)


cdef void end_one(Core *core, Place *place) noexcept nogil:
    place.starved_now -= 1
    core.starving -= 1


cdef bint try_some(Core *core, Place *place) noexcept nogil:
    """Have some of a container's directories tried again; True when the last tries brought something."""
    cdef bint better = place.starved.count < place.starved_before
    cdef uint32_t tries = 0
    cdef Job job
    if core.watch_share and place.watches >= core.watch_share:
        return False
    place.tries = min(<uint32_t>TRIES_MOST, place.tries * 2) if better else <uint32_t>TRIES_LEAST
    place.starved_before = place.starved.count
    while place.starved.count and tries < place.tries:
        job = ring_pop(&place.starved)
        end_one(core, place)
        if node_is(core, job.node, job.serial):
            job_push(core, job.node)
            tries += 1
    return better


cdef void try_roots(Core *core) noexcept nogil:
    cdef Subscription *subscription = core.subscriptions
    cdef int i
    while subscription != NULL and core.starving_roots:
        for i in range(subscription.root_count):
            if subscription.roots[i].starved:
                root_fed(core, &subscription.roots[i])
                root_push(core, &subscription.roots[i])
        subscription = subscription.next


cdef void root_fed(Core *core, Root *root) noexcept nogil:
    """A subject path waits no longer: it is looked up now, or has ended."""
    if root.starved:
        root.starved = False
        core.starving_roots -= 1
        end_one(core, root.subscription.place)


cdef void starved_settle(Core *core) noexcept nogil:
    """There is no work left: whatever was tried again is watched, or waits again. Say of whom all is watched."""
    cdef Place *place = core.places
    while place != NULL:
        if place.starved_most and place.starved_now == 0:
            notice_push(core, NOTICE_WATCHED, place.starved_by, 0, place.starved_most, 0)
            place.starved_most = 0
            place.starved_told = 0
            place.starved_before = 0
        place = place.next


cdef int64_t starved_due(Core *core, int64_t now_ns) noexcept nogil:
    """Try some again if it is time; when the next are due, or 0. With the lock held."""
    cdef Place *place = core.places
    cdef bint better = False
    if core.starving == 0:
        core.starved_ns = 0
        return 0
    if now_ns < core.starved_ns:
        return core.starved_ns
    while place != NULL:
        if place.starved.count and try_some(core, place):
            better = True
        place = place.next
    try_roots(core)
    core.starved_ns = now_ns + (SOON_NS if better else EVERY_NS)
    return core.starved_ns


cdef bint share_is_used(const Core *core, const Root *root) noexcept nogil:
    """True if a container has all the watches that it may have."""
    return core.watch_share != 0 and root.subscription.place.watches >= core.watch_share


cdef long read_limit(const char *path) noexcept nogil:
    """A number in a file of /proc/sys, 0 where there is none."""
    cdef char text[24]
    cdef ssize_t size = 0
    cdef int fd = open(path, O_RDONLY | O_CLOEXEC)
    if fd >= 0:
        size = read(fd, text, sizeof(text) - 1)
        close(fd)
    if size <= 0:
        return 0
    text[size] = 0
    return atol(text)


cdef uint32_t share_read(int percent) noexcept nogil:
    """The watches that are this part of the user's limit; 0: any number."""
    cdef long limit = read_limit(b"/proc/sys/fs/inotify/max_user_watches")
    cdef long of_namespace = read_limit(b"/proc/sys/user/max_inotify_watches")
    if of_namespace > 0 and (limit <= 0 or of_namespace < limit):
        limit = of_namespace
    return <uint32_t>max(<long>1, limit * percent // 100) if percent and limit > 0 else 0
