# cython: language_level=3, boundscheck=False, wraparound=False
"""What is on the move: directories that left their place or lost it to others, until it is known where they are."""

from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memset

from argusd._records cimport buffer_add, buffer_free
from argusd.engine.core cimport (
    LIMBO_WAITS,
    NODE_DISPLACED,
    NODE_LIMBO,
    NODE_ORPHAN,
    ORIGINS,
    Node,
    Origin,
    WdEntry,
    monotonic_ns,
    name_hash,
    wd_find,
)
from argusd.engine.extent cimport fit
from argusd.engine.queues cimport (
    Item,
    Key,
    Queue,
    index_add,
    index_find,
    index_next,
    index_remove,
    of_node,
    queue_leave,
    queue_push,
)
from argusd.engine.tree cimport node_below, node_depth, node_free_tree, node_is, node_replace, node_unindex
from argusd.engine.work cimport job_push
from argusd.includes.linux cimport IN_MOVED_TO
from argusd.includes.pthread cimport pthread_cond_signal


cdef enum:
    WATCHED = 0                     # index in Core.limbo_waiting
    UNWATCHED = 1


cdef int64_t *WAIT_NS = [
    500 * 1000 * 1000,              # of a moved or overwritten directory with a watch another event is sure to come
    50 * 1000 * 1000,               # of another one, unless it left, the other half of the same system call
]


cdef Limbo *limbo_push(Core *core, uint32_t node, uint32_t cookie) noexcept nogil:
    cdef Limbo *limbo = <Limbo *>calloc(1, sizeof(Limbo))
    if limbo == NULL:
        return NULL
    limbo.cookie = cookie
    limbo.node = node
    limbo.serial = core.nodes[node].serial
    limbo.due.owner = limbo.holding.owner = limbo
    if (not index_add(&core.limbo_by_node, &limbo.by_node, of_node(node, limbo.serial), limbo)
            or (cookie and not index_add(&core.limbo_by_cookie, &limbo.by_cookie, cookie, limbo))):
        index_remove(&core.limbo_by_node, &limbo.by_node)
        free(limbo)
        return NULL
    core.limbo_count += 1
    limbo_wait(core, limbo, core.nodes[node].wd >= 0)
    pthread_cond_signal(&core.work)         # the walker sees to it that this ends
    return limbo


cdef void limbo_wait(Core *core, Limbo *limbo, bint watched) noexcept nogil:
    """Wait for the rest of the rename as long as for a directory that is watched, or is not."""
    cdef int kind = WATCHED if watched else UNWATCHED
    limbo.due.until_ns = monotonic_ns() + WAIT_NS[kind]
    queue_push(&core.limbo_waiting[kind], &limbo.due)


cdef void limbo_free(Core *core, Limbo *limbo) noexcept nogil:
    queue_leave(&limbo.due)
    queue_leave(&limbo.holding)
    index_remove(&core.limbo_by_node, &limbo.by_node)
    index_remove(&core.limbo_by_cookie, &limbo.by_cookie)
    index_remove(&core.limbo_by_place, &limbo.by_place)
    index_remove(&core.limbo_by_claim, &limbo.by_claim)
    index_remove(&core.limbo_by_rival, &limbo.by_rival)
    core.limbo_count -= 1
    buffer_free(&limbo.deferred)
    free(limbo)


cdef Limbo *limbo_any(Core *core) noexcept nogil:
    """Any one of all, or NULL when nothing is on the move."""
    cdef Item *item = core.limbo_due.first
    cdef int kind
    for kind in range(LIMBO_WAITS):
        if item == NULL:
            item = core.limbo_waiting[kind].first
    return <Limbo *>item.owner if item != NULL else NULL


cdef void limbo_free_all(Core *core) noexcept nogil:
    cdef Limbo *limbo = limbo_any(core)
    while limbo != NULL:
        limbo_free(core, limbo)
        limbo = limbo_any(core)


cdef bint queue_busy(Core *core, const Queue *queue) noexcept nogil:
    cdef const Item *item = queue.first
    cdef const Limbo *limbo
    while item != NULL:
        limbo = <const Limbo *>item.owner
        if not limbo.arrived and node_is(core, limbo.node, limbo.serial):
            return True
        item = item.next
    return False


cdef bint limbo_busy(Core *core) noexcept nogil:
    """True while a directory is not at its place, and it is not known where it is."""
    return (queue_busy(core, &core.limbo_due) or queue_busy(core, &core.limbo_waiting[WATCHED])
            or queue_busy(core, &core.limbo_waiting[UNWATCHED]))


cdef Buffer limbo_take(Core *core, Limbo *limbo) noexcept nogil:
    """A directory is on the move no longer: what was held back of it, for the caller to replay and to free."""
    cdef Buffer deferred = limbo.deferred
    memset(&limbo.deferred, 0, sizeof(Buffer))
    core.nodes[limbo.node].flags &= <unsigned short>~(NODE_LIMBO | NODE_DISPLACED)
    limbo_free(core, limbo)
    return deferred


cdef void limbo_hold(Core *core, Limbo *limbo, uint32_t node, const inotify_event *event) noexcept nogil:
    """Keep an event of what is on the move until it is known where that is."""
    hold(core, &limbo.deferred, node, event)
    if limbo.holding.queue == NULL:
        queue_push(&core.limbo_holding, &limbo.holding)


cdef Limbo *limbo_at(Core *core, uint32_t node, bint displaced) noexcept nogil:
    """The entry of a node: of its own move, or of what was moved onto it; NULL when there is none."""
    cdef const Key *key = index_find(&core.limbo_by_node, of_node(node, core.nodes[node].serial))
    while key != NULL and ((<const Limbo *>key.owner).cookie == 0) != displaced:
        key = index_next(key)
    return <Limbo *>key.owner if key != NULL else NULL


cdef Limbo *limbo_of(Core *core, uint32_t node) noexcept nogil:
    """The entry of the moved directory that ``node`` is, or is below of; NULL when there is none."""
    while node and not core.nodes[node].flags & NODE_LIMBO:
        node = core.nodes[node].parent
    return limbo_at(core, node, False) if node else NULL


cdef Limbo *limbo_by_cookie(Core *core, uint32_t cookie, const Root *root) noexcept nogil:
    cdef const Key *key = index_find(&core.limbo_by_cookie, cookie)
    cdef Limbo *limbo
    while key != NULL:
        limbo = <Limbo *>key.owner
        if node_is(core, limbo.node, limbo.serial) and core.nodes[limbo.node].root == root:
            return limbo
        key = index_next(key)
    return NULL


cdef Limbo *limbo_of_wd(Core *core, int wd, const Root *root, uint32_t outside) noexcept nogil:
    """The entry of a directory of that tree with this watch descriptor, below which ``outside`` is not; or NULL."""
    cdef const WdEntry *entry = wd_find(core, wd)
    cdef uint32_t node = entry.first if entry != NULL else 0
    cdef const Key *key
    while node:
        key = index_find(&core.limbo_by_node, of_node(node, core.nodes[node].serial))
        while key != NULL:
            if (core.nodes[node].root == root and not (<const Limbo *>key.owner).arrived
                    and not node_below(core, outside, node)):
                return <Limbo *>key.owner
            key = index_next(key)
        node = core.nodes[node].next_on_wd
    return NULL


cdef bint limbo_claim(Core *core, Limbo *displaced, uint32_t cookie) noexcept nogil:
    """Note which event moved something away from the name of what was displaced; 0 takes that back."""
    index_remove(&core.limbo_by_claim, &displaced.by_claim)
    displaced.claim = cookie
    return cookie == 0 or index_add(&core.limbo_by_claim, &displaced.by_claim, cookie, displaced)


cdef bint limbo_rival(Core *core, Limbo *displaced, uint32_t node) noexcept nogil:
    """Note what stands at the name of what was displaced."""
    index_remove(&core.limbo_by_rival, &displaced.by_rival)
    displaced.rival = node
    displaced.rival_serial = core.nodes[node].serial
    return index_add(&core.limbo_by_rival, &displaced.by_rival, of_node(node, displaced.rival_serial), displaced)


cdef Limbo *stayed(Core *core, uint32_t node) noexcept nogil:
    """The exchange in which ``node`` was taken to stay where it had been moved, or NULL."""
    cdef const Key *key = index_find(&core.limbo_by_rival, of_node(node, core.nodes[node].serial))
    while key != NULL and not (<const Limbo *>key.owner).arrived:
        key = index_next(key)
    return <Limbo *>key.owner if key != NULL else NULL


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


cdef uint64_t place_of(Core *core, uint32_t parent, uint32_t node) noexcept nogil:
    return name_hash(core, parent, core.nodes[node].name, core.nodes[node].name_size)


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
    index_add(&core.limbo_by_place, &limbo.by_place, place_of(core, limbo.parent, node), limbo)
    node_unindex(core, node)
    core.nodes[node].flags |= NODE_DISPLACED


cdef Limbo *displaced_at(Core *core, uint32_t parent, const char *name, size_t size) noexcept nogil:
    """What stood under this name before the last thing was moved there, or NULL."""
    cdef const Key *key = index_find(&core.limbo_by_place, name_hash(core, parent, name, size))
    cdef Limbo *limbo
    cdef uint32_t node
    while key != NULL:
        limbo = <Limbo *>key.owner
        node = limbo.node
        if (limbo.parent == parent and limbo.parent_serial == core.nodes[parent].serial
                and not limbo.arrived and node_is(core, node, limbo.serial) and core.nodes[node].name_size == size
                and memcmp(core.nodes[node].name, name, size) == 0):
            return limbo
        key = index_next(key)
    return NULL


cdef Limbo *displaced_by(Core *core, uint32_t claim, const Root *root) noexcept nogil:
    """What may have been moved from its name by the event with this cookie, instead of what stood there then."""
    cdef const Key *key = index_find(&core.limbo_by_claim, claim)
    cdef Limbo *limbo
    while key != NULL:
        limbo = <Limbo *>key.owner
        if node_is(core, limbo.node, limbo.serial) and core.nodes[limbo.node].root == root:
            return limbo
        key = index_next(key)
    return NULL


cdef Limbo *displaced_as(Core *core, uint32_t node) noexcept nogil:
    return limbo_at(core, node, True)


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
    cdef const Item *item = core.limbo_holding.first
    cdef const Limbo *other
    cdef const inotify_event *event
    cdef size_t at
    while item != NULL:
        other = <const Limbo *>item.owner
        at = 0
        while other != limbo and at < other.deferred.size:
            event = <const inotify_event *>(other.deferred.data + at + sizeof(Held))
            at += sizeof(Held) + sizeof(inotify_event) + event.len
            if event.mask & IN_MOVED_TO and event.cookie == limbo.cookie:
                return True
        item = item.next
    return False
