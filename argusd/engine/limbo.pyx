# cython: language_level=3, boundscheck=False, wraparound=False
"""What is on the move: directories that left their place or lost it to others, until it is known where they are."""

from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memset

from argusd._records cimport buffer_add, buffer_free
from argusd.engine.core cimport (
    NODE_DISPLACED,
    NODE_LIMBO,
    NODE_ORPHAN,
    ORIGINS,
    Node,
    Origin,
    monotonic_ns,
    name_hash,
)
from argusd.engine.extent cimport fit
from argusd.engine.tree cimport node_below, node_depth, node_free_tree, node_is, node_replace, node_unindex
from argusd.engine.work cimport job_push
from argusd.includes.linux cimport IN_MOVED_TO
from argusd.includes.pthread cimport pthread_cond_signal


cdef enum:
    WATCHED_NS = 500 * 1000 * 1000  # of a moved or overwritten directory with a watch another event is sure to come


cdef Limbo *limbo_push(Core *core, uint32_t node, uint32_t cookie) noexcept nogil:
    cdef Limbo *limbo = <Limbo *>calloc(1, sizeof(Limbo))
    if limbo == NULL:
        return NULL
    limbo.cookie = cookie
    limbo.node = node
    limbo.serial = core.nodes[node].serial
    limbo.until_ns = monotonic_ns() + (WATCHED_NS if core.nodes[node].wd >= 0 else UNWATCHED_NS)
    limbo.next = core.limbo
    core.limbo = limbo
    pthread_cond_signal(&core.work)         # the walker sees to it that this ends
    return limbo


cdef void limbo_free(Core *core, Limbo *limbo) noexcept nogil:
    cdef Limbo **link = &core.limbo
    while link[0] != limbo:
        link = &link[0].next
    link[0] = limbo.next
    buffer_free(&limbo.deferred)
    free(limbo)


cdef Buffer limbo_take(Core *core, Limbo *limbo) noexcept nogil:
    """A directory is on the move no longer: what was held back of it, for the caller to replay and to free."""
    cdef Buffer deferred = limbo.deferred
    memset(&limbo.deferred, 0, sizeof(Buffer))
    core.nodes[limbo.node].flags &= <unsigned short>~(NODE_LIMBO | NODE_DISPLACED)
    limbo_free(core, limbo)
    return deferred


cdef Limbo *limbo_of(Core *core, uint32_t node) noexcept nogil:
    """The entry of the moved directory that ``node`` is, or is below of; NULL when there is none."""
    cdef Limbo *limbo
    while node and not core.nodes[node].flags & NODE_LIMBO:
        node = core.nodes[node].parent
    if node == 0:
        return NULL
    limbo = core.limbo
    while limbo != NULL and (limbo.node != node or limbo.serial != core.nodes[node].serial or not limbo.cookie):
        limbo = limbo.next
    return limbo


cdef Limbo *limbo_by_cookie(Core *core, uint32_t cookie, const Root *root) noexcept nogil:
    cdef Limbo *limbo = core.limbo
    while limbo != NULL:
        if (limbo.cookie == cookie and node_is(core, limbo.node, limbo.serial)
                and core.nodes[limbo.node].root == root):
            return limbo
        limbo = limbo.next
    return NULL


cdef Limbo *stayed(Core *core, uint32_t node) noexcept nogil:
    """The exchange in which ``node`` was taken to stay where it had been moved, or NULL."""
    cdef Limbo *limbo = core.limbo
    while limbo != NULL and not (limbo.arrived and limbo.rival == node
                                 and limbo.rival_serial == core.nodes[node].serial):
        limbo = limbo.next
    return limbo


cdef void confirm(Core *core, uint32_t node) noexcept nogil:
    """Another event names the node: where it was taken to be is where it is."""
    cdef Limbo *limbo = stayed(core, node)
    if limbo != NULL:
        limbo_free(core, limbo)


cdef void origin_note(Core *core, uint32_t cookie, uint32_t parent, const char *name, size_t size) noexcept nogil:
    cdef Origin *origin = &core.origins[core.origin_at % ORIGINS]
    core.origin_at += 1
    origin.cookie = cookie
    origin.root = core.nodes[parent].root
    origin.place = name_hash(core, parent, name, size)


cdef uint64_t origin_of(Core *core, uint32_t cookie, const Root *root) noexcept nogil:
    """Where in a tree that came from which is moved by the event with this cookie; 0 when it came from outside."""
    cdef uint32_t i
    for i in range(ORIGINS):
        if core.origins[i].cookie == cookie and core.origins[i].root == root:
            return core.origins[i].place
    return 0


cdef void displace(Core *core, uint32_t node, uint64_t origin) noexcept nogil:
    """Something was moved onto the node's name: it was overwritten, or it is about to be exchanged."""
    cdef Limbo *limbo
    confirm(core, node)
    limbo = limbo_push(core, node, 0)
    if limbo == NULL:
        node_free_tree(core, node)
        return
    limbo.parent = core.nodes[node].parent
    limbo.parent_serial = core.nodes[limbo.parent].serial
    limbo.origin = origin
    node_unindex(core, node)
    core.nodes[node].flags |= NODE_DISPLACED


cdef Limbo *displaced_at(Core *core, uint32_t parent, const char *name, size_t size) noexcept nogil:
    """What stood under this name before the last thing was moved there, or NULL."""
    cdef Limbo *limbo = core.limbo
    cdef uint32_t node
    while limbo != NULL:
        node = limbo.node
        if (limbo.cookie == 0 and limbo.parent == parent and limbo.parent_serial == core.nodes[parent].serial
                and not limbo.arrived and node_is(core, node, limbo.serial) and core.nodes[node].name_size == size
                and memcmp(core.nodes[node].name, name, size) == 0):
            return limbo
        limbo = limbo.next
    return NULL


cdef Limbo *displaced_by(Core *core, uint32_t claim, const Root *root) noexcept nogil:
    """What may have been moved from its name by the event with this cookie, instead of what stood there then."""
    cdef Limbo *limbo = core.limbo
    while limbo != NULL and not (limbo.claim == claim and limbo.cookie == 0 and node_is(core, limbo.node, limbo.serial)
                                 and core.nodes[limbo.node].root == root):
        limbo = limbo.next
    return limbo


cdef Limbo *displaced_as(Core *core, uint32_t node) noexcept nogil:
    cdef Limbo *limbo = core.limbo
    while limbo != NULL and not (limbo.node == node and limbo.cookie == 0 and limbo.serial == core.nodes[node].serial):
        limbo = limbo.next
    return limbo


cdef bint went_back(Core *core, uint32_t node) noexcept nogil:
    """A directory was moved that was taken to stay: it was not exchanged, but overwrote the other and went back."""
    cdef Limbo *limbo = stayed(core, node)
    cdef uint32_t place, depth
    if limbo == NULL:
        return False
    # Where it was is not watched, or what we know of it is wrong.
    if not node_is(core, limbo.node, limbo.serial) or node_below(core, limbo.node, node):
        limbo_free(core, limbo)
        node_free_tree(core, node)
        return True
    place, depth = limbo.node, node_depth(core, node)
    limbo_free(core, limbo)
    node_replace(core, place, node)
    fit(core, node, depth)
    job_push(core, node)
    return True


cdef bint is_full(Core *core, const Buffer *events) noexcept nogil:
    """Can no more be held back? Then events are lost."""
    core.spilled = core.spilled or events.size > HELD_MAX
    return events.size > HELD_MAX


cdef void hold(Core *core, Buffer *events, uint32_t node, const inotify_event *event) noexcept nogil:
    cdef Held held
    if is_full(core, events):
        return
    held.node = node
    held.serial = core.nodes[node].serial
    held.passed = core.event_passed
    buffer_add(events, <const char *>&held, sizeof(held))
    buffer_add(events, <const char *>event, sizeof(inotify_event) + event.len)


cdef bint is_at(Core *core, const Look *look) noexcept nogil:
    """Does a node still stand where it was looked for, and has no event since then named what stands there?"""
    cdef const Node *node = &core.nodes[look.node]
    return (look.still and not node.flags & (NODE_LIMBO | NODE_DISPLACED | NODE_ORPHAN)
            and node.parent == look.parent and core.nodes[look.parent].serial == look.parent_serial
            and name_hash(core, node.parent, node.name, node.name_size) == look.name
            and not node.root.unsure and limbo_of(core, look.node) == NULL)


cdef bint comes_later(Core *core, const Limbo *limbo) noexcept nogil:
    """Is the other half of a rename among what is held back for another moved directory, into which it led?"""
    cdef const Limbo *other = core.limbo
    cdef const inotify_event *event
    cdef size_t at
    while other != NULL:
        at = 0
        while other != limbo and at < other.deferred.size:
            event = <const inotify_event *>(other.deferred.data + at + sizeof(Held))
            at += sizeof(Held) + sizeof(inotify_event) + event.len
            if event.mask & IN_MOVED_TO and event.cookie == limbo.cookie:
                return True
        other = other.next
    return False
