# cython: language_level=3, boundscheck=False, wraparound=False
"""From kernel events to lines and counts: the reader thread.

Facts about inotify events that shape this file:

* Events of one instance come in the order in which they happened, for all its watches together.
* A rename makes IN_MOVED_FROM, IN_MOVED_TO (both with one cookie, other events may come between) and then IN_MOVE_SELF
  on what was moved. So a directory's IN_MOVE_SELF settles the matter: if its IN_MOVED_TO has not come by then, it was
  moved out of everything that is watched.
* RENAME_EXCHANGE is two such renames, one after the other; at the second name stands, for a moment, what was moved
  there first.
* rmdir makes IN_DELETE_SELF and IN_IGNORED on the directory, then IN_DELETE in the parent; when somebody still has the
  directory open, IN_DELETE comes first and the others when it is closed.
* An identical event right behind the last one is merged into it by the kernel.
"""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset, strlen, strncmp
from posix.time cimport CLOCK_MONOTONIC, CLOCK_REALTIME, clock_gettime, timespec

cdef extern from "<time.h>" nogil:
    int CLOCK_REALTIME_COARSE

from argusd._records cimport Buffer, buffer_add, buffer_free, stamp_set
from argusd._report cimport CREATED_KEPT, PATHS, Created, emit, emit_subject, flush_lines, report
from argusd._output cimport SINKS_MAX
from argusd._tree cimport (
    ANCHORED,
    DEPTH_MAX,
    NODE_CREATED,
    NODE_DEPARTED,
    NODE_DISPLACED,
    NODE_LIMBO,
    NODE_MOVED,
    NODE_WINDOW,
    NOISY,
    NOTICE_OVERFLOW,
    OVERFLOW_INDEX,
    TRIGGER_DIRECTORY,
    TRIGGER_LAST,
    TRIGGER_MOVED,
    TRIGGER_OVER,
    Anchor,
    Identity,
    Limbo,
    Name,
    Retry,
    Root,
    Subscription,
    Swap,
    WdEntry,
    Window,
    anchor_first,
    anchors_lose,
    core_lock_first,
    core_unlock_first,
    fence_place,
    fence_reset,
    recent_add,
    recent_has,
    root_push,
    root_settled,
    swap_free,
    swap_push,
    tell_python,
    is_ignored,
    job_push,
    name_hash,
    node_depth,
    node_find,
    node_free_tree,
    node_is,
    node_move,
    node_new,
    node_next,
    node_path,
    node_unindex,
    notice_push,
    wd_find,
    wd_forget,
)
from argusd._walk cimport place_open
from argusd._window cimport echo_drop, echoes_expire, window_add, window_find, window_free, window_name
from argusd.includes.linux cimport (
    IN_ATTRIB,
    IN_CREATE,
    IN_DELETE,
    IN_DELETE_SELF,
    IN_IGNORED,
    IN_ISDIR,
    IN_MODIFY,
    IN_MOVE_SELF,
    IN_MOVED_FROM,
    IN_MOVED_TO,
    IN_Q_OVERFLOW,
    IN_UNMOUNT,
    POLLIN,
    PRIO_PROCESS,
    SYS_gettid,
    close,
    inotify_event,
    poll,
    pollfd,
    read,
    readlink,
    setpriority,
    syscall,
    usleep,

)
from argusd.includes.pthread cimport add_u64, load_int, store_int

cdef enum:
    EVENTS_SIZE = 1024 * 1024       # bytes read at once: the whole default queue of 16,384 short names
    BUSY = 16                       # events in one read from which on the next is put off, so that it brings more
    NAP_US = 1000
    HELD_MAX = 4 * 1024 * 1024      # bytes of events held back for one moved directory or subject path

cdef uint32_t BOTH_MOVES = IN_MOVED_FROM | IN_MOVED_TO


# ---- directories whose first listing is not settled yet

cdef void window_event(Reader *reader, uint32_t node, const inotify_event *event, size_t size) noexcept nogil:
    """Before an event in a new directory is reported: was its file there before the watch, and not reported yet?"""
    cdef Core *core = reader.core
    cdef Window *window = window_find(core, node)
    cdef bint arrives = (event.mask & (IN_CREATE | IN_MOVED_TO)) != 0
    cdef Name *name
    if window == NULL or size == 0:
        return
    name = window_name(core, window, event.name, size)
    if name == NULL:
        name = window_add(core, window, event.name, size, (event.mask & IN_ISDIR) != 0)
    if name == NULL or name.seen:
        return
    name.seen = True
    if not arrives and not window.repair:
        emit(reader, node, IN_CREATE, (event.mask & IN_ISDIR) != 0, event.name, size)


cdef void remember(Reader *reader, int wd, const char *name, size_t size) noexcept nogil:
    """Keep in mind that this was created, or moved here: a repair must not report it again."""
    cdef Created *created = &reader.created[reader.created_at & (CREATED_KEPT - 1)]
    reader.created_at += 1
    created.hashed = name_hash(reader.core, <uint32_t>wd, name, size) | 1
    created.ns = reader.batch_ns
    if reader.core.repair:
        recent_add(reader.core, created.hashed)


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


# ---- directories on the move

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


cdef void moved_from(Core *core, uint32_t parent, const inotify_event *event, size_t size) noexcept nogil:
    cdef uint32_t node = displaced_from(core, parent, event.name, size) if core.limbo != NULL else 0
    cdef Limbo *limbo
    if node == 0:
        node = node_find(core, parent, event.name, size)
    if node == 0:
        return
    limbo = limbo_push(core, node, event.cookie)
    if limbo == NULL:
        node_free_tree(core, node)
        return
    node_unindex(core, node)
    core.nodes[node].flags |= NODE_LIMBO | NODE_MOVED
    if core.nodes[node].wd < 0:
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
    cdef uint32_t node = top, after
    if limit == 0:
        return
    while node:
        if core.nodes[node].first_child and node_depth(core, node) >= <uint32_t>limit:
            while core.nodes[node].first_child:
                node_free_tree(core, core.nodes[node].first_child)
        node = node_next(core, top, node)


cdef void moved_to(Reader *reader, uint32_t parent, const inotify_event *event, size_t size) noexcept nogil:
    cdef Core *core = reader.core
    cdef Root *root = core.nodes[parent].root
    cdef Limbo *limbo = limbo_by_cookie(core, event.cookie, root) if core.limbo != NULL else NULL
    cdef uint32_t existing = node_find(core, parent, event.name, size), node, depth
    cdef Buffer deferred
    if existing:
        displace(core, existing)
    if not event.mask & IN_ISDIR:
        return
    if limbo == NULL:
        if may_enter(core, parent, event.name, size):
            node = node_new(core, parent, root, event.name, size)
            if node:
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
        if root.subscription.max_depth and depth != node_depth(core, node):
            prune(core, node)
            if node_depth(core, node) < depth:      # what was too deep before is to be found
                replant(core, node)
        else:
            job_push(core, node)
        replay(reader, &deferred)
    else:
        node_free_tree(core, node)
    buffer_free(&deferred)


cdef void replant(Core *core, uint32_t node) noexcept nogil:
    """Have the walker search a directory again from scratch, as one that was moved in."""
    while core.nodes[node].first_child:
        node_free_tree(core, core.nodes[node].first_child)
    relist(core, node)


cdef void relist(Core *core, uint32_t node) noexcept nogil:
    cdef uint32_t parent = core.nodes[node].parent, fresh
    cdef Root *root = core.nodes[node].root
    cdef char name[256]
    cdef size_t size = core.nodes[node].name_size
    memcpy(name, core.nodes[node].name, size + 1)
    node_free_tree(core, node)
    fresh = node_new(core, parent, root, name, size)
    if fresh:
        job_push(core, fresh)


# ---- events held back for a directory on the move: node, serial, then the event as the kernel gave it

cdef struct Held:
    uint32_t node
    uint32_t serial


cdef void hold(Core *core, Buffer *events, uint32_t node, const inotify_event *event) noexcept nogil:
    cdef Held held
    if events.size > HELD_MAX:
        core.spilled = True
        return
    held.node = node
    held.serial = core.nodes[node].serial
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
            node_event(reader, held.node, event)


# ---- one event, one node

cdef void follow(Reader *reader, Root *root) noexcept nogil:
    """A followMove subject was moved: its descriptor knows the new path."""
    cdef char link[40]
    cdef char target[4096]
    cdef char top[4096]
    cdef ssize_t size, top_size
    cdef int fd = place_open(root.subscription.place.pid, root.subscription.place.pidfd)
    cdef char *path
    if fd < 0:
        return
    snprintf(link, sizeof(link), b"/proc/self/fd/%d", fd)
    top_size = readlink(link, top, sizeof(top))
    close(fd)
    snprintf(link, sizeof(link), b"/proc/self/fd/%d", root.follow_fd)
    size = readlink(link, target, sizeof(target))
    if size <= 0 or top_size <= 0 or target[0] != c'/':
        return
    if top_size == 1:
        top_size = 0
    if size <= top_size or strncmp(target, top, <size_t>top_size) != 0 or target[top_size] != c'/':
        return                              # outside of the container's root: keep the last path inside
    path = <char *>malloc(<size_t>(size - top_size) + 1)
    if path == NULL:
        return
    memcpy(path, target + top_size, <size_t>(size - top_size))
    path[size - top_size] = 0
    free(root.path)
    root.path = path
    root.path_size = <size_t>(size - top_size)
    reader.core.generation += 1


cdef void move_self(Reader *reader, uint32_t node, const inotify_event *event) noexcept nogil:
    """A watched file or directory has a new place, or none that we know."""
    cdef Core *core = reader.core
    cdef Root *root = core.nodes[node].root
    cdef Limbo *limbo
    if core.nodes[node].parent == 0:
        report(reader, node, event, 0)
        if root.subscription.follow_move:
            follow(reader, root)
        else:
            root_push(core, root)           # see what is at the path now
        return
    limbo = limbo_of(core, node)
    if limbo != NULL and limbo.node == node:
        report(reader, node, event, 0)      # moved out of the tree
        node_free_tree(core, node)
        limbo_free(core, limbo)
    elif limbo == NULL:
        if root.subscription.mask & BOTH_MOVES != BOTH_MOVES:   # else the pair of events has told it
            report(reader, node, event, 0)
        job_push(core, node)                # inside the tree: check that it is where the pair put it


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
        if child and core.nodes[child].wd < 0:
            node_free_tree(core, child)
        elif child:
            node_unindex(core, child)       # still open somewhere: its own last events are to come


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


# ---- one event

cdef void ignored(Reader *reader, WdEntry *entry, const inotify_event *event) noexcept nogil:
    """The kernel let a watch go: the inode was deleted, or its file system unmounted."""
    cdef Core *core = reader.core
    cdef uint32_t node, after, serial
    if entry.mask & ANCHORED:
        anchors_lose(core, event.wd)
        entry = wd_find(core, event.wd)
    node = entry.first
    wd_forget(core, event.wd)
    after = node
    while after:                            # the list is in the nodes: first unhook all, then free
        core.nodes[after].wd = -1
        after = core.nodes[after].next_on_wd
    while node:
        after = core.nodes[node].next_on_wd
        serial = core.nodes[after].serial if after else 0
        if core.nodes[node].root.unsure:
            hold(core, &core.nodes[node].root.held, node, event)
        else:
            end_node(core, node)
        node = after if after and node_is(core, after, serial) else 0


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


# ---- subject paths

cdef void anchored(Core *core, const inotify_event *event, size_t size) noexcept nogil:
    """Something happened in a directory that subject paths go through."""
    cdef Anchor *anchor = anchor_first(core, event.wd)
    while anchor != NULL:
        if anchor.wd == event.wd and anchor.name_size == size and memcmp(anchor.name, event.name, size) == 0:
            trigger(core, anchor, event)
        anchor = anchor.next_on_wd


cdef void trigger(Core *core, Anchor *anchor, const inotify_event *event) noexcept nogil:
    """A step of a subject path has changed: look again, and hold back what comes until that is done."""
    cdef Root *root = anchor.root
    cdef char kind = 0
    if event.mask & (IN_CREATE | IN_MOVED_TO):
        kind = ((TRIGGER_LAST if anchor.last else 0) | (TRIGGER_MOVED if event.mask & IN_MOVED_TO else 0)
                | (TRIGGER_DIRECTORY if event.mask & IN_ISDIR else 0) | (TRIGGER_OVER if anchor.present else 0))
        buffer_add(&root.triggers, &kind, 1)
        anchor.present = True
    else:
        anchor.present = False
    if root.top or root.next_top:
        root.unsure = True
    root.moved = root.moved or not anchor.last or (event.mask & IN_MOVED_FROM) != 0
    root_push(core, root)


cdef bint in_tree(Core *core, uint32_t node, uint32_t top) noexcept nogil:
    while core.nodes[node].parent:
        node = core.nodes[node].parent
    return node == top


cdef void replay_root(Reader *reader, const Buffer *events, uint32_t top, uint32_t mask) noexcept nogil:
    """Handle the events that were held back for one of the trees of a root."""
    cdef Core *core = reader.core
    cdef const Held *held
    cdef const inotify_event *event
    cdef size_t at = 0
    while top and at < events.size:
        held = <const Held *>(events.data + at)
        event = <const inotify_event *>(events.data + at + sizeof(Held))
        at += sizeof(Held) + sizeof(inotify_event) + event.len
        if not event.mask & mask or not node_is(core, held.node, held.serial) or not in_tree(core, held.node, top):
            continue
        reader.number += 1
        if event.mask & IN_IGNORED:
            end_node(core, held.node)
        else:
            node_event(reader, held.node, event)


cdef void tell_arrivals(Reader *reader, Root *root, const Buffer *triggers, bint known, bint other) noexcept nogil:
    """Report that the path came to stand for another file, once for each time that the kernel told so.

    ``other``: it stands for another file than before. Otherwise only what was put over something else counts.
    """
    cdef size_t i
    cdef int told = 0
    cdef char kind
    cdef bint last = False
    for i in range(triggers.size):
        last = last or triggers.data[i] & TRIGGER_LAST
    for i in range(triggers.size):
        kind = triggers.data[i]
        if not other and not kind & TRIGGER_OVER:
            continue
        if kind & TRIGGER_LAST:
            emit_subject(reader, root, IN_MOVED_TO if kind & TRIGGER_MOVED else IN_CREATE)
        elif last or not known:
            continue
        emit_subject(reader, root, IN_MODIFY)
        told += 1
    if other and not told:
        if not known:
            emit_subject(reader, root, IN_CREATE)
        emit_subject(reader, root, IN_MODIFY)


cdef void tell_passage(Reader *reader, Root *root, const Buffer *triggers) noexcept nogil:
    """The path stands for nothing now, but files were created there and are gone again: report those."""
    cdef size_t i
    for i in range(triggers.size):
        if triggers.data[i] & TRIGGER_LAST and not triggers.data[i] & TRIGGER_MOVED:
            root.directory = (triggers.data[i] & TRIGGER_DIRECTORY) != 0
            emit_subject(reader, root, IN_CREATE)
            emit_subject(reader, root, IN_MODIFY)


cdef bint same_file(const Identity *a, const Identity *b) noexcept nogil:
    return (a.valid and b.valid and a.device == b.device and a.inode == b.inode
            and a.born_s == b.born_s and a.born_ns == b.born_ns)


cdef void depart(Reader *reader, Root *root, const Buffer *held, uint32_t top) noexcept nogil:
    """The file of a subject path is there no longer. One that still lives and only lost its name may tell its end."""
    cdef Core *core = reader.core
    if root.moved:
        node_free_tree(core, top)
        return
    while core.nodes[top].first_child:
        node_free_tree(core, core.nodes[top].first_child)
    core.nodes[top].flags |= NODE_DEPARTED
    root.top = 0
    replay_root(reader, held, top, IN_DELETE_SELF | IN_ATTRIB)


cdef void judge(Reader *reader, Root *root) noexcept nogil:
    """A look-up and every event before it are known: what does the subject path stand for, and what was it before?"""
    cdef Core *core = reader.core
    cdef uint32_t top = root.top, next_top = root.next_top
    cdef Buffer held = root.held, triggers = root.triggers
    cdef bint known, other
    cdef uint32_t all_events = 0xFFFFFFFF
    root_settled(core, root)
    memset(&root.held, 0, sizeof(Buffer))
    memset(&root.triggers, 0, sizeof(Buffer))
    root.unsure = False
    if top and (core.nodes[top].wd < 0 or (root.found.valid and not next_top)):
        replay_root(reader, &held, top, all_events)     # its own file: here still, or until its end
        top = root.top
    if not root.found.valid:
        if top:
            depart(reader, root, &held, top)
            root.known.valid = root.known.valid and root.moved
        tell_passage(reader, root, &triggers)
    else:
        known = root.known.valid
        other = not same_file(&root.known, &root.found)
        if next_top:
            if top:
                depart(reader, root, &held, top)
            root.top = next_top
            root.next_top = 0
        root.known = root.found
        tell_arrivals(reader, root, &triggers, known, other)
        replay_root(reader, &held, next_top, all_events)
    root.moved = False
    buffer_free(&held)
    buffer_free(&triggers)


cdef void tell_swap(Reader *reader, Swap *swap) noexcept nogil:
    """A volume's ..data was swapped: what is reached through it is new."""
    cdef uint32_t i
    if node_is(reader.core, swap.node, swap.serial):
        for i in range(swap.count):
            emit(reader, swap.node, IN_MODIFY, False, swap.names[i].bytes, swap.names[i].size)


cdef bint is_unsure(Core *core, const Window *window) noexcept nogil:
    return node_is(core, window.node, window.serial) and core.nodes[window.node].root.unsure


cdef void settle(Reader *reader) noexcept nogil:
    """A mark has come out of the queue: end what waited for it."""
    cdef Core *core = reader.core
    cdef uint64_t passed = core.fence_passed
    cdef Window *window = core.windows
    cdef Window *oldest
    cdef Limbo *limbo
    cdef Limbo *next_limbo
    cdef Retry **link = &core.retries
    cdef Retry *retry
    cdef Root *root = core.unsettled
    cdef Root *next_root
    cdef Swap *swap = core.swaps
    cdef Swap *next_swap
    while root != NULL:
        next_root = root.next_unsettled
        if root.fence <= passed and not root.queued and not root.looking:   # else another look-up is to come
            judge(reader, root)
        root = next_root
    while swap != NULL:
        next_swap = swap.next
        if swap.fence and swap.fence <= passed:
            tell_swap(reader, swap)
            swap_free(core, swap)
        swap = next_swap
    while True:                             # in the order of the listings: parents before children
        oldest = NULL
        window = core.windows
        while window != NULL:
            if (window.fence and window.fence <= passed and not is_unsure(core, window)
                    and (oldest == NULL or window.fence < oldest.fence)):
                oldest = window
            window = window.next
        if oldest == NULL:
            break
        window_settle(reader, oldest)
    echoes_expire(core)
    limbo = core.limbo
    while limbo != NULL:
        next_limbo = limbo.next
        if not node_is(core, limbo.node, limbo.serial):
            limbo_free(core, limbo)
        elif limbo.fence and limbo.fence <= passed:
            node_free_tree(core, limbo.node)
            limbo_free(core, limbo)
        limbo = next_limbo
    while link[0] != NULL:
        retry = link[0]
        if retry.fence > passed:
            link = &retry.next
            continue
        link[0] = retry.next
        if node_is(core, retry.node, retry.serial):
            if retry.gone and core.nodes[retry.node].wd < 0 and not core.nodes[retry.node].flags & (
                    NODE_MOVED | NODE_LIMBO | NODE_DISPLACED):
                node_free_tree(core, retry.node)
            else:
                job_push(core, retry.node)
        free(retry)
    if core.repair and core.repairing == 0 and core.windows == NULL:
        end_repair(core)


cdef void end_repair(Core *core) noexcept nogil:
    core.repair = False
    free(core.recent)
    core.recent = NULL
    core.recent_count = 0
    core.recent_capacity = 0


cdef void begin_repair(Reader *reader) noexcept nogil:
    """Have every tree listed again. What was born since the read before this one began, and not told, is new."""
    cdef Core *core = reader.core
    cdef Subscription *subscription = core.subscriptions
    cdef int i
    if not core.repair:
        core.repair = True
        core.repair_since_ns = reader.last_ns
        for i in range(CREATED_KEPT):
            if reader.created[i].ns >= reader.last_ns:
                recent_add(core, reader.created[i].hashed)
    while subscription != NULL:
        for i in range(subscription.root_count):
            if not subscription.roots[i].rescan:
                subscription.roots[i].rescan = True
                core.repairing += 1
            root_push(core, &subscription.roots[i])
        subscription = subscription.next


cdef void drop_limbo(Core *core) noexcept nogil:
    """What was on the move when events were lost: the listings will tell where it is."""
    cdef Limbo *limbo
    while core.limbo != NULL:
        limbo = core.limbo
        if node_is(core, limbo.node, limbo.serial):
            node_free_tree(core, limbo.node)
        limbo_free(core, limbo)


cdef void overflow(Reader *reader) noexcept nogil:
    """The kernel dropped events: say so in the log and in every watch's counts, and find out what was missed."""
    cdef Core *core = reader.core
    cdef Subscription *subscription = core.subscriptions
    reader.overflows += 1
    while subscription != NULL:
        if subscription.on and subscription.counter.overflow != reader.overflows:
            subscription.counter.overflow = reader.overflows
            add_u64(&subscription.counter.counts[OVERFLOW_INDEX], 1)
        subscription = subscription.next
    notice_push(core, NOTICE_OVERFLOW, 0, 0, <long>reader.overflows, 0)
    reader.counted = True
    fence_reset(core)
    drop_limbo(core)
    begin_repair(reader)
    settle(reader)


cdef void handle(Reader *reader, const inotify_event *event) noexcept nogil:
    cdef Core *core = reader.core
    cdef WdEntry *entry
    cdef uint32_t node, after, serial
    if event.wd == core.fence_wd:
        if not event.mask & IN_IGNORED:
            core.fence_passed += 1
            settle(reader)
        return
    reader.handled += 1
    reader.number += 1
    if event.mask & IN_Q_OVERFLOW:
        overflow(reader)
        return
    entry = wd_find(core, event.wd)
    if entry == NULL:                       # nobody's any more
        return
    if entry.mask & ANCHORED and event.len and event.mask & (IN_CREATE | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO):
        anchored(core, event, strlen(event.name))
    if event.len and event.mask & (IN_CREATE | IN_MOVED_TO):
        remember(reader, event.wd, event.name, strlen(event.name))
    if event.mask & IN_IGNORED:
        ignored(reader, entry, event)
        return
    if core.echoes != NULL and event.mask & NOISY and echo_drop(
            core, event.wd, event.mask, <const char *>event.name if event.len else NULL):
        return
    node = entry.first
    while node:
        after = core.nodes[node].next_on_wd
        serial = core.nodes[after].serial if after else 0
        node_event(reader, node, event)
        node = after if after and node_is(core, after, serial) else 0


# ---- the thread

cdef int64_t file_time() noexcept nogil:
    """Now, by the clock that file systems take times from, in nanoseconds."""
    cdef timespec now
    clock_gettime(CLOCK_REALTIME_COARSE, &now)
    return <int64_t>now.tv_sec * 1000000000 + now.tv_nsec


cdef void handle_batch(Reader *reader, size_t size, int *count) noexcept nogil:
    cdef const inotify_event *event
    cdef size_t at = 0
    cdef timespec now
    cdef int i
    count[0] = 0
    clock_gettime(CLOCK_REALTIME, &now)
    stamp_set(&reader.stamp, <int64_t>now.tv_sec * 1000000000 + now.tv_nsec, reader.thread_id)
    reader.counted = False
    reader.batch_ns = file_time()
    core_lock_first(reader.core)
    while at < size:
        event = <const inotify_event *>(reader.events + at)
        at += sizeof(inotify_event) + event.len
        handle(reader, event)
        count[0] += 1
    if reader.core.spilled:
        reader.core.spilled = False
        overflow(reader)
    core_unlock_first(reader.core)
    for i in range(reader.sink_count):
        flush_lines(reader, i)
    reader.reads += 1
    reader.last_ns = file_time()
    if reader.counted and load_int(&reader.wanted):
        tell_python(reader.core)


cdef long milliseconds() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec * 1000 + now.tv_nsec // 1000000


cdef void *reader_main(void *argument) noexcept nogil:
    """The life of the reader thread: it never takes the GIL, and never waits for output or a file system."""
    cdef Reader *reader = <Reader *>argument
    cdef pollfd sources[2]
    cdef ssize_t size
    cdef int count = 0
    cdef long end = -1
    reader.thread_id = syscall(SYS_gettid)
    setpriority(PRIO_PROCESS, <unsigned int>reader.thread_id, -20)  # the kernel's queue waits for nobody; may fail
    sources[0].fd, sources[0].events = reader.core.inotify_fd, POLLIN
    sources[1].fd, sources[1].events = reader.stop_fd, POLLIN
    while True:
        store_int(&reader.busy, 1)
        size = read(reader.core.inotify_fd, reader.events, EVENTS_SIZE)
        if size > 0:
            handle_batch(reader, <size_t>size, &count)
            if end >= 0 and milliseconds() > end:
                break
            if count >= BUSY and end < 0:
                usleep(NAP_US)
            continue
        if size < 0 and errno != EAGAIN and errno != EINTR:
            break
        if end >= 0:                        # asked to stop, and the queue is empty
            break
        store_int(&reader.busy, 0)
        poll(sources, 2, -1)
        if sources[1].revents:
            end = milliseconds() + reader.drain_ms
    return NULL


cdef bint reader_init(Reader *reader, Core *core) noexcept nogil:
    memset(reader, 0, sizeof(Reader))
    reader.core = core
    reader.stop_fd = -1
    reader.events = <char *>malloc(EVENTS_SIZE)
    reader.created = <Created *>calloc(CREATED_KEPT, sizeof(Created))
    return reader.events != NULL and reader.created != NULL


cdef void reader_free(Reader *reader) noexcept nogil:
    cdef int i
    for i in range(SINKS_MAX):
        buffer_free(&reader.lines[i])
    for i in range(PATHS):
        buffer_free(&reader.paths[i].text)
    buffer_free(&reader.message)
    buffer_free(&reader.file)
    buffer_free(&reader.subject)
    free(reader.events)
    free(reader.created)
    if reader.stop_fd >= 0:
        close(reader.stop_fd)
