# cython: language_level=3, boundscheck=False, wraparound=False
"""What an event means for the tree of one directory: new, moved and vanished entries.

Facts about inotify events that shape this file:

* A rename makes IN_MOVED_FROM, IN_MOVED_TO (both with one cookie, other events may come between) and then IN_MOVE_SELF
  on what was moved. So a directory's IN_MOVE_SELF settles the matter: if its IN_MOVED_TO has not come by then, it was
  moved out of everything that is watched.
* RENAME_EXCHANGE is two such renames, one after the other; at the second name stands, for a moment, what was moved
  there first.
* rmdir makes IN_DELETE_SELF and IN_IGNORED on the directory, then IN_DELETE in the parent; when somebody still has the
  directory open, IN_DELETE comes first and the others when it is closed.
"""

from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset, strlen, strncmp

from argusd._records cimport buffer_add, buffer_free
from argusd.engine.core cimport (
    DEPTH_MAX,
    LIMBO_ROUNDS_MAX,
    NODE_CREATED,
    NODE_DEPARTED,
    NODE_DISPLACED,
    NODE_EXPECT,
    NODE_FIRST,
    NODE_LIMBO,
    NODE_MOVED,
    NODE_RELIST,
    NODE_WINDOW,
    PAUSE_ROUNDS,
    Name,
    Root,
    Subscription,
    fence_place,
    name_hash,
)
from argusd.engine.opening cimport place_open
from argusd.engine.report cimport CREATED_KEPT, Created, emit, report
from argusd.engine.tree cimport (
    is_ignored,
    is_older,
    node_depth,
    node_find,
    node_free_below,
    node_free_tree,
    node_is,
    node_move,
    node_new,
    node_next,
    node_orphan,
    node_unindex,
)
from argusd.engine.window cimport window_add, window_find, window_free, window_name
from argusd.engine.work cimport job_push, recent_add, recent_has, root_push, swap_push
from argusd.includes.linux cimport (
    IN_ATTRIB,
    IN_CREATE,
    IN_DELETE,
    IN_DELETE_SELF,
    IN_ISDIR,
    IN_MODIFY,
    IN_MOVED_FROM,
    IN_MOVED_TO,
    IN_MOVE_SELF,
    IN_UNMOUNT,
    close,
    memmem,
    readlink,
)


cdef enum:
    NO_COOKIE = 0xFFFFFFFF          # in Limbo.cookie: matches no event
    HELD_MAX = 4 * 1024 * 1024      # bytes of events held back for one moved directory or subject path


cdef uint32_t BOTH_MOVES = IN_MOVED_FROM | IN_MOVED_TO


cdef void remember(Reader *reader, int wd, const char *name, size_t size) noexcept nogil:
    """Keep in mind that this was created, or moved here: a repair must not report it again."""
    cdef Created *created = &reader.created[reader.created_at & (CREATED_KEPT - 1)]
    reader.created_at += 1
    created.hashed = name_hash(reader.core, <uint32_t>wd, name, size) | 1
    created.ns = reader.batch_ns
    if reader.core.repair:
        recent_add(reader.core, created.hashed)


cdef void window_event(Reader *reader, uint32_t node, const inotify_event *event, size_t size) noexcept nogil:
    """Before an event in a new directory is reported: was its file there before the watch, and not reported yet?"""
    cdef Core *core = reader.core
    cdef Window *window = window_find(core, node)
    cdef bint arrives = (event.mask & (IN_CREATE | IN_MOVED_TO)) != 0
    cdef Name *name
    if window == NULL or size == 0:
        return
    name = window_name(core, window, event.name, size)
    if window.repair and not arrives and (
            name == NULL or recent_has(core, core.nodes[node].wd, event.name, size)):
        return                          # not known to be new
    if name == NULL:
        name = window_add(core, window, event.name, size, (event.mask & IN_ISDIR) != 0)
    if name == NULL or name.seen:
        return
    name.seen = True
    if not arrives:
        emit(reader, node, IN_CREATE, (event.mask & IN_ISDIR) != 0, event.name, size)


cdef void window_settle(Reader *reader, Window *window) noexcept nogil:
    """All events from before the listing are known: what the listing found beyond them is reported as created."""
    cdef uint32_t i
    cdef Core *core = reader.core
    cdef int wd
    if node_is(core, window.node, window.serial):
        wd = core.nodes[window.node].wd
        for i in range(window.count):
            if not window.names[i].seen and not (
                    window.repair and recent_has(core, wd, window.names[i].bytes, window.names[i].size)):
                remember(reader, wd, window.names[i].bytes, window.names[i].size)
                emit(reader, window.node, IN_CREATE, window.names[i].directory, window.names[i].bytes,
                     window.names[i].size)
    window_free(reader.core, window)


cdef Limbo *limbo_push(Core *core, uint32_t node, uint32_t cookie) noexcept nogil:
    cdef Limbo *limbo = <Limbo *>calloc(1, sizeof(Limbo))
    if limbo == NULL:
        return NULL
    limbo.cookie = cookie
    limbo.node = node
    limbo.serial = core.nodes[node].serial
    limbo.next = core.limbo
    core.limbo = limbo
    return limbo


cdef void limbo_free(Core *core, Limbo *limbo) noexcept nogil:
    cdef Limbo **link = &core.limbo
    while link[0] != limbo:
        link = &link[0].next
    link[0] = limbo.next
    buffer_free(&limbo.deferred)
    free(limbo)


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


cdef void displace(Core *core, uint32_t node) noexcept nogil:
    """Something was moved onto the node's name: it was overwritten, or it is about to be exchanged."""
    cdef Limbo *limbo = limbo_push(core, node, 0)
    if limbo == NULL:
        node_free_tree(core, node)
        return
    limbo.parent = core.nodes[node].parent
    limbo.parent_serial = core.nodes[limbo.parent].serial
    limbo.fence = fence_place(core)
    node_unindex(core, node)
    core.nodes[node].flags |= NODE_DISPLACED


cdef uint32_t displaced_from(Core *core, uint32_t parent, const char *name, size_t size) noexcept nogil:
    """The node that stood under this name before something else was moved there; 0 when there is none."""
    cdef Limbo *limbo = core.limbo
    cdef uint32_t node
    while limbo != NULL:
        node = limbo.node
        if (limbo.cookie == 0 and limbo.parent == parent and limbo.parent_serial == core.nodes[parent].serial
                and node_is(core, node, limbo.serial) and core.nodes[node].name_size == size
                and memcmp(core.nodes[node].name, name, size) == 0):
            core.nodes[node].flags &= <unsigned short>~NODE_DISPLACED
            limbo_free(core, limbo)
            return node
        limbo = limbo.next
    return 0


cdef uint32_t before_of(Core *core, uint32_t node) noexcept nogil:
    """A node without a watch, for what had the name of ``node`` before that was armed; 0 when memory ran out."""
    cdef char name[256]
    cdef size_t size = core.nodes[node].name_size
    cdef uint32_t before
    memcpy(name, core.nodes[node].name, size + 1)
    before = node_new(core, core.nodes[node].parent, core.nodes[node].root, name, size)
    if before:
        core.nodes[before].flags |= core.nodes[node].flags & NODE_CREATED
    return before


cdef void moved_from(Core *core, uint32_t parent, const inotify_event *event, size_t size) noexcept nogil:
    cdef uint32_t node = displaced_from(core, parent, event.name, size) if core.limbo != NULL else 0
    cdef Limbo *limbo
    if node == 0:
        node = node_find(core, parent, event.name, size)
    if node and is_older(core, node):       # what had the name before moved; the node stands for what came after
        node = before_of(core, node)
    if node == 0:
        return
    limbo = limbo_push(core, node, event.cookie)
    if limbo == NULL:
        node_free_tree(core, node)
        return
    node_unindex(core, node)
    core.nodes[node].flags |= NODE_LIMBO | NODE_MOVED
    limbo.fence = fence_place(core)


cdef bint may_enter(Core *core, uint32_t parent, const char *name, size_t size) noexcept nogil:
    """Is a directory of this name below ``parent`` to be watched?"""
    cdef Subscription *subscription = core.nodes[parent].root.subscription
    cdef uint32_t depth
    if is_ignored(subscription, name, size):
        return False
    depth = node_depth(core, parent)
    return depth < DEPTH_MAX and (subscription.max_depth == 0 or depth < <uint32_t>subscription.max_depth)


cdef void prune(Core *core, uint32_t top) noexcept nogil:
    """Drop the nodes that a move has put deeper than maxDepth."""
    cdef int limit = core.nodes[top].root.subscription.max_depth
    cdef uint32_t node = top
    if limit == 0:
        return
    while node:
        if core.nodes[node].first_child and node_depth(core, node) >= <uint32_t>limit:
            node_free_below(core, node)
        node = node_next(core, top, node)


cdef void moved_to(Reader *reader, uint32_t parent, const inotify_event *event, size_t size) noexcept nogil:
    cdef Core *core = reader.core
    cdef Root *root = core.nodes[parent].root
    cdef Limbo *limbo = limbo_by_cookie(core, event.cookie, root) if core.limbo != NULL else NULL
    cdef uint32_t existing = node_find(core, parent, event.name, size), node, depth
    cdef bint overtaken = False
    cdef Buffer deferred
    if existing and is_older(core, existing):
        overtaken = True                    # what stands here came after this
    elif existing:
        displace(core, existing)
    if not event.mask & IN_ISDIR:
        return
    if limbo == NULL:
        if may_enter(core, parent, event.name, size):
            node = node_new(core, parent, root, event.name, size)
            if node and overtaken:
                displace(core, node)
            elif node:
                job_push(core, node)
        return
    node = limbo.node
    deferred = limbo.deferred
    memset(&limbo.deferred, 0, sizeof(Buffer))
    limbo_free(core, limbo)
    core.nodes[node].flags &= <unsigned short>~NODE_LIMBO
    if may_enter(core, parent, event.name, size):
        depth = node_depth(core, node)
        node_move(core, node, parent, event.name, size)
        if root.subscription.max_depth:
            prune(core, node)
            widen(core, node, <uint32_t>root.subscription.max_depth + node_depth(core, node), depth)
        if overtaken:
            displace(core, node)
        else:
            core.nodes[node].flags |= NODE_EXPECT
            job_push(core, node)
        replay(reader, &deferred)
    else:
        node_free_tree(core, node)
    buffer_free(&deferred)


cdef void widen(Core *core, uint32_t top, uint32_t limit, uint32_t before) noexcept nogil:
    """After a move to a lesser depth, have those directories listed again that were at maxDepth before.

    ``limit`` is maxDepth plus the depth of ``top`` now, ``before`` its depth before the move.
    """
    cdef uint32_t node = top
    if limit >= <uint32_t>core.nodes[top].root.subscription.max_depth + before:
        return
    while node:
        if node_depth(core, node) + before == limit:
            core.nodes[node].flags |= NODE_RELIST
            job_push(core, node)
        node = node_next(core, top, node)


cdef void hold(Core *core, Buffer *events, uint32_t node, const inotify_event *event) noexcept nogil:
    cdef Held held
    if events.size > HELD_MAX:
        core.spilled = True
        return
    held.node = node
    held.serial = core.nodes[node].serial
    held.passed = core.event_passed
    buffer_add(events, <const char *>&held, sizeof(held))
    buffer_add(events, <const char *>event, sizeof(inotify_event) + event.len)


cdef void replay(Reader *reader, const Buffer *deferred) noexcept nogil:
    cdef const Held *held
    cdef const inotify_event *event
    cdef size_t at = 0
    while at < deferred.size:
        held = <const Held *>(deferred.data + at)
        event = <const inotify_event *>(deferred.data + at + sizeof(Held))
        at += sizeof(Held) + sizeof(inotify_event) + event.len
        if node_is(reader.core, held.node, held.serial):
            reader.number += 1
            reader.core.event_passed = held.passed
            node_event(reader, held.node, event)
    reader.core.event_passed = reader.core.fence_passed


cdef bint follow(Reader *reader, Root *root) noexcept nogil:
    """Give a followMove subject the path that its descriptor has now; False when that is the one it had."""
    cdef char link[40]
    cdef char target[4096]
    cdef char top[4096]
    cdef ssize_t size, top_size
    cdef int fd = place_open(root.subscription.place.pid, root.subscription.place.pidfd)
    cdef char *path
    if fd < 0:
        return False
    snprintf(link, sizeof(link), b"/proc/self/fd/%d", fd)
    top_size = readlink(link, top, sizeof(top))
    close(fd)
    snprintf(link, sizeof(link), b"/proc/self/fd/%d", root.follow_fd)
    size = readlink(link, target, sizeof(target))
    if size <= 0 or top_size <= 0 or target[0] != c'/':
        return False
    if top_size == 1:
        top_size = 0
    if size <= top_size or strncmp(target, top, <size_t>top_size) != 0 or target[top_size] != c'/':
        return False                        # outside of the container's root: keep the last path inside
    if memmem(target, <size_t>size, b" (deleted)", 10) != NULL:
        return False
    size -= top_size
    if <size_t>size == root.path_size and memcmp(target + top_size, root.path, <size_t>size) == 0:
        return False
    path = <char *>malloc(<size_t>size + 1)
    if path == NULL:
        return False
    memcpy(path, target + top_size, <size_t>size)
    path[size] = 0
    free(root.path)
    root.path = path
    root.path_size = <size_t>size
    reader.core.generation += 1
    return True


cdef void stray(Core *core, uint32_t node) noexcept nogil:
    """A directory was moved, but the events that would tell where were merged with others: hold back what it tells.

    Should it be in the tree, the walker finds it there and takes it over. If not, it goes.
    """
    cdef Limbo *limbo = limbo_push(core, node, NO_COOKIE)
    if limbo == NULL:
        node_free_tree(core, node)
        return
    node_unindex(core, node)
    core.nodes[node].flags |= NODE_LIMBO
    limbo.rounds = LIMBO_ROUNDS_MAX - PAUSE_ROUNDS      # no other event of it is to be waited for
    limbo.fence = fence_place(core)


cdef void move_self(Reader *reader, uint32_t node, const inotify_event *event) noexcept nogil:
    """A watched file or directory has a new place, or none that we know."""
    cdef Core *core = reader.core
    cdef Root *root = core.nodes[node].root
    cdef Limbo *limbo
    if core.nodes[node].parent == 0:
        report(reader, node, event, 0)
        if root.follow_fd >= 0:
            follow(reader, root)
        root_push(core, root)               # see what is at the path now
        return
    if is_older(core, node):
        return
    limbo = limbo_of(core, node)
    if limbo != NULL and limbo.node == node:
        report(reader, node, event, 0)      # moved out of the tree
        node_free_tree(core, node)
        limbo_free(core, limbo)
    elif limbo == NULL:
        if root.subscription.mask & BOTH_MOVES != BOTH_MOVES:   # else the pair of events has told it
            report(reader, node, event, 0)
        if core.nodes[node].flags & NODE_EXPECT:
            core.nodes[node].flags &= <unsigned short>~NODE_EXPECT
            job_push(core, node)            # inside the tree: check that it is where the pair put it
        else:
            stray(core, node)


cdef void entry_event(Reader *reader, uint32_t node, const inotify_event *event, size_t size) noexcept nogil:
    """Take what happened to an entry of a directory into its tree."""
    cdef Core *core = reader.core
    cdef uint32_t child
    if event.mask & IN_MOVED_TO:
        moved_to(reader, node, event, size)
    elif not event.mask & IN_ISDIR:
        return
    elif event.mask & IN_CREATE:
        child = node_find(core, node, event.name, size)
        if child == 0 and may_enter(core, node, event.name, size):
            child = node_new(core, node, core.nodes[node].root, event.name, size)
            if child:
                core.nodes[child].flags |= NODE_CREATED
        if child:
            job_push(core, child)
    elif event.mask & IN_MOVED_FROM:
        moved_from(core, node, event, size)
    elif event.mask & IN_DELETE:
        child = node_find(core, node, event.name, size)
        if child and is_older(core, child):
            return
        if child and core.nodes[child].wd < 0:
            node_free_tree(core, child)
        elif child:
            node_orphan(core, child)        # still open somewhere: its own last events are to come


cdef void end_node(Core *core, uint32_t node) noexcept nogil:
    """What a node stood for is gone."""
    cdef Root *root = core.nodes[node].root
    if root.top == node:
        root.known.valid = root.unmounted   # a deleted file's number may be used again: what comes is another file
        root.unmounted = False
        if root.follow_fd >= 0:
            close(root.follow_fd)
            root.follow_fd = -1
        root_push(core, root)
    node_free_tree(core, node)


cdef void node_event(Reader *reader, uint32_t node, const inotify_event *event) noexcept nogil:
    cdef Core *core = reader.core
    cdef size_t size = strlen(event.name) if event.len else 0
    cdef Limbo *limbo
    cdef Root *root = core.nodes[node].root
    if event.mask & IN_MOVE_SELF and (core.nodes[node].parent == 0 or not root.unsure):
        move_self(reader, node, event)
        return
    if root.unsure:
        hold(core, &root.held, node, event)
        return
    if core.nodes[node].flags & NODE_DEPARTED:
        if event.mask & (IN_DELETE_SELF | IN_ATTRIB):
            report(reader, node, event, size)
        return
    if core.limbo != NULL:
        limbo = limbo_of(core, node)
        if limbo != NULL:
            hold(core, &limbo.deferred, node, event)
            return
    if is_older(core, node):                # the tree was seen later than this
        if core.nodes[node].flags & NODE_FIRST:     # but an update takes over from a watch that would have told it
            report(reader, node, event, size)
        return
    if core.nodes[node].flags & NODE_WINDOW:
        window_event(reader, node, event, size)
    if event.mask & IN_UNMOUNT:
        root.unmounted = core.nodes[node].parent == 0
        return
    report(reader, node, event, size)
    if event.mask & IN_MOVED_TO and root.subscription.mask & IN_MODIFY and size == 6 and memcmp(
            event.name, b"..data", 6) == 0:
        swap_push(core, node)
    if size and root.subscription.recursive:
        entry_event(reader, node, event, size)
