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

from libc.string cimport memcmp, memcpy, memset, strlen

from argusd._records cimport buffer_free
from argusd.engine.core cimport (
    NODE_CREATED,
    NODE_DEPARTED,
    NODE_DISPLACED,
    NODE_ENDING,
    NODE_FIRST,
    NODE_INDEXED,
    NODE_LIMBO,
    NODE_MOVED,
    NODE_RELIST,
    NODE_UNMOUNTED,
    NODE_WINDOW,
    Name,
    WdEntry,
    name_hash,
    wd_detach,
    wd_find,
)
from argusd.engine.extent cimport bind, fit, look_for, may_enter, unlisted
from argusd.engine.following cimport follow
from argusd.engine.limbo cimport (
    Held,
    comes_later,
    confirm,
    displace,
    displaced_as,
    displaced_at,
    displaced_by,
    hold,
    is_at,
    limbo_by_cookie,
    limbo_claim,
    limbo_free,
    limbo_hold,
    limbo_of,
    limbo_of_wd,
    limbo_push,
    limbo_rival,
    limbo_take,
    limbo_wait,
    origin_note,
    origin_of,
    went_back,
)
from argusd.engine.report cimport CREATED_KEPT, Created, emit, report
from argusd.engine.tree cimport (
    is_known,
    is_older,
    node_below,
    node_depth,
    node_find,
    node_free_below,
    node_free_tree,
    node_index,
    node_is,
    node_move,
    node_new,
    node_orphan,
    node_replace,
    node_unindex,
    other_place,
)
from argusd.engine.window cimport window_add, window_find, window_free, window_name
from argusd.engine.work cimport (
    job_push,
    look_disturb,
    recent_add,
    recent_has,
    retry_push,
    root_push,
    swap_push,
    told_hash,
)
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
)


cdef uint32_t BOTH_MOVES = IN_MOVED_FROM | IN_MOVED_TO
cdef uint32_t ENTRIES = IN_CREATE | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO


cdef void remember(Reader *reader, uint32_t node, const char *name, size_t size) noexcept nogil:
    """Keep in mind that this was told to be created in ``node``, or moved there: a repair must not tell it again."""
    cdef Created *created = &reader.created[reader.created_at & (CREATED_KEPT - 1)]
    reader.created_at += 1
    created.hashed = told_hash(reader.core, node, name, size)
    created.ns = reader.batch_ns
    if reader.core.repair:
        recent_add(reader.core, created.hashed)


cdef void window_event(Reader *reader, uint32_t node, const inotify_event *event, size_t size) noexcept nogil:
    """Before an event in a new directory is reported: was its file there before the watch, and not reported yet?"""
    cdef Core *core = reader.core
    cdef Window *window = window_find(core, node)
    cdef bint arrives = (event.mask & (IN_CREATE | IN_MOVED_TO)) != 0, told
    cdef Name *name
    if window == NULL or size == 0:
        return
    name = window_name(core, window, event.name, size)
    told = core.repair and recent_has(core, node, event.name, size)
    if window.repair and not arrives and (name == NULL or told):
        return                          # not known to be new
    if name == NULL:
        name = window_add(core, window, event.name, size, (event.mask & IN_ISDIR) != 0)
    if name == NULL or name.seen:
        return
    name.seen = True
    if not arrives and not told:
        remember(reader, node, event.name, size)
        emit(reader, node, IN_CREATE, (event.mask & IN_ISDIR) != 0, event.name, size)


cdef void window_settle(Reader *reader, Window *window) noexcept nogil:
    """All events from before the listing are known: what the listing found beyond them is reported as created."""
    cdef uint32_t i
    cdef Core *core = reader.core
    if node_is(core, window.node, window.serial):
        core.nodes[window.node].flags &= <unsigned short>~NODE_CREATED
        for i in range(window.count):
            if not window.names[i].seen and not (
                    core.repair and recent_has(core, window.node, window.names[i].bytes, window.names[i].size)):
                remember(reader, window.node, window.names[i].bytes, window.names[i].size)
                emit(reader, window.node, IN_CREATE, window.names[i].directory, window.names[i].bytes,
                     window.names[i].size)
    window_free(reader.core, window)


cdef void put_back(Reader *reader, Limbo *limbo) noexcept nogil:
    """It was not this directory that was moved, but what it had been exchanged for."""
    cdef Core *core = reader.core
    cdef uint32_t node = limbo.node
    cdef Buffer deferred = limbo_take(core, limbo)
    if node_find(core, core.nodes[node].parent, core.nodes[node].name, core.nodes[node].name_size):
        node_free_tree(core, node)          # something came to its place
    else:
        node_index(core, node)
        job_push(core, node)
        replay(reader, &deferred)
    buffer_free(&deferred)


cdef void expire(Reader *reader, Limbo *limbo) noexcept nogil:
    """The rest of a rename does not come: what was moved has left the tree, or was not what was moved."""
    cdef Core *core = reader.core
    cdef Limbo *displaced = displaced_by(core, limbo.cookie, core.nodes[limbo.node].root) if limbo.cookie else NULL
    if limbo.arrived:
        limbo_free(core, limbo)
    elif displaced != NULL:
        node_free_tree(core, displaced.node)
        limbo_free(core, displaced)
        put_back(reader, limbo)
    else:
        node_free_tree(core, limbo.node)
        limbo_free(core, limbo)


cdef uint32_t exchanged(Reader *reader, Limbo *moved, Limbo *displaced) noexcept nogil:
    """What was moved onto another name is back where it came from, as far as one can tell: it was an exchange.

    Two renames, there and back, look just the same until the end, which is IN_MOVE_SELF on what was moved last. Returns
    the node that was moved now.
    """
    cdef Core *core = reader.core
    cdef uint32_t node = displaced.node
    core.nodes[node].flags &= <unsigned short>~NODE_DISPLACED
    if moved != NULL:
        displaced.arrived = True
        limbo_claim(core, displaced, 0)
        put_back(reader, moved)
    else:
        limbo_free(core, displaced)
    return node


cdef void moved_from(Core *core, uint32_t parent, const inotify_event *event, size_t size) noexcept nogil:
    cdef Limbo *displaced = displaced_at(core, parent, event.name, size) if core.limbo_count else NULL
    cdef uint32_t node = node_find(core, parent, event.name, size)
    cdef Limbo *limbo
    origin_note(core, event.cookie, parent, event.name, size)
    if node and displaced != NULL:
        if not limbo_claim(core, displaced, event.cookie) or not limbo_rival(core, displaced, node):
            core.spilled = True             # no memory to tell the two apart: as if events were lost
        # Nothing is to be held back of one that is not watched: let it stand until more is known.
        if core.nodes[node].wd < 0 and not core.nodes[node].flags & NODE_ENDING:
            job_push(core, node)
            return
    elif displaced != NULL:
        node = displaced.node
        core.nodes[node].flags &= <unsigned short>~NODE_DISPLACED
        limbo_free(core, displaced)
        displaced = NULL
    if node == 0 and may_enter(core, parent, event.name, size):     # it is there before its listing has told
        node = unlisted(core, parent, event.name, size)
    if node == 0:
        return
    confirm(core, node)
    limbo = limbo_push(core, node, event.cookie)
    if limbo == NULL:
        node_free_tree(core, node)
        return
    if displaced != NULL and core.nodes[displaced.node].wd < 0:
        limbo_wait(core, limbo, False)      # if it was the other one, nothing more is told
    node_unindex(core, node)
    core.nodes[node].flags |= NODE_LIMBO | NODE_MOVED
    if (core.nodes[node].wd < 0 and not core.nodes[node].flags & NODE_ENDING
            and may_enter(core, parent, event.name, size)):
        # It may have been exchanged as soon as it came, and the two IN_MOVED_TO merged: see what is there now.
        look_for(core, parent, event.name, size)


cdef void moved_to(Reader *reader, uint32_t parent, const inotify_event *event, size_t size) noexcept nogil:
    cdef Core *core = reader.core
    cdef Root *root = core.nodes[parent].root
    cdef Limbo *limbo = limbo_by_cookie(core, event.cookie, root) if core.limbo_count else NULL
    cdef uint32_t existing = node_find(core, parent, event.name, size), node, depth
    cdef Limbo *claimed = NULL
    cdef Buffer deferred
    if core.limbo_count:
        claimed = displaced_by(core, event.cookie, root)
    if existing == 0 and event.mask & IN_ISDIR and not is_known(core, parent) and may_enter(
            core, parent, event.name, size):
        existing = unlisted(core, parent, event.name, size)     # there may be something that is being exchanged
    if existing:
        displace(core, existing, origin_of(core, event.cookie, root))
    if not event.mask & IN_ISDIR:
        return
    if limbo == NULL and (claimed == NULL or not node_is(core, claimed.rival, claimed.rival_serial)
                          or core.nodes[claimed.rival].wd >= 0):
        if may_enter(core, parent, event.name, size):
            look_for(core, parent, event.name, size)
        return
    memset(&deferred, 0, sizeof(Buffer))
    if claimed != NULL and claimed.origin == name_hash(core, parent, event.name, size):
        node = exchanged(reader, limbo, claimed)
    else:
        if claimed != NULL:
            limbo_claim(core, claimed, 0)
        node = limbo.node if limbo != NULL else claimed.rival
        if limbo != NULL:
            deferred = limbo_take(core, limbo)
    if node_below(core, parent, node):      # events were lost: no directory moves into itself
        node_free_tree(core, node)
    elif may_enter(core, parent, event.name, size):
        depth = node_depth(core, node)
        node_move(core, node, parent, event.name, size)
        fit(core, node, depth)
        job_push(core, node)
        replay(reader, &deferred)
    else:
        node_free_tree(core, node)
    buffer_free(&deferred)


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


cdef bint take_over(Reader *reader, Look *look) noexcept nogil:
    """The reader has come to the point in time at which the walker looked for a directory: what it found is true now.

    True when the walker has to look for the directory at another place, where the tree has it.
    """
    cdef Core *core = reader.core
    cdef uint32_t node = look.node, other
    cdef WdEntry *entry = wd_find(core, look.wd) if look.wd else NULL
    cdef bint proven = False
    if not node_is(core, node, look.serial):
        pass
    elif not is_at(core, look) or (look.wd and entry == NULL):
        if core.nodes[node].wd != look.wd and not look.initial:
            job_push(core, node)
    elif not look.wd:
        node_free_tree(core, node)
    elif core.nodes[node].wd != look.wd and not reclaim(reader, node, look.wd):
        other = other_place(core, node, look.wd)
        if other and look.found.valid:
            job_push(core, node)
            proven = True
        elif other:
            retry_push(core, node)
        else:
            if core.nodes[node].wd >= 0:
                node_free_below(core, node)
                wd_detach(core, node)
            bind(core, node, look.wd)
            core.nodes[node].flags |= NODE_RELIST
            if not look.initial:
                job_push(core, node)
            replay(reader, &look.held)
    return proven


cdef bint reclaim(Reader *reader, uint32_t node, int wd) noexcept nogil:
    """A directory that was moved from its place was found at ``node``, as is proven: go on with it there.

    False when no moved directory of this tree has that watch descriptor.
    """
    cdef Core *core = reader.core
    cdef uint32_t parent = core.nodes[node].parent, place = node, depth
    cdef Limbo *limbo = limbo_of_wd(core, wd, core.nodes[node].root, parent) if core.limbo_count else NULL
    cdef Buffer deferred
    if limbo == NULL:
        return False
    node = limbo.node
    deferred = limbo_take(core, limbo)
    depth = node_depth(core, node)
    node_replace(core, place, node)
    fit(core, node, depth)
    job_push(core, node)
    replay(reader, &deferred)
    buffer_free(&deferred)
    return True


cdef void move_self(Reader *reader, uint32_t node, const inotify_event *event) noexcept nogil:
    """A watched file or directory has a new place, or none that we know."""
    cdef Core *core = reader.core
    cdef Root *root = core.nodes[node].root
    cdef Limbo *limbo
    cdef Limbo *displaced
    if core.nodes[node].parent == 0:
        report(reader, node, event, 0)
        if root.follow_fd >= 0:
            follow(core, root)
        root_push(core, root)               # see what is at the path now
        return
    limbo = limbo_of(core, node)
    displaced = displaced_as(core, node) if core.limbo_count else NULL
    if limbo != NULL and limbo.node != node:
        limbo_hold(core, limbo, node, event)
    elif limbo != NULL and comes_later(core, limbo):
        return
    elif limbo != NULL:
        report(reader, node, event, 0)      # moved out of the tree
        node_free_tree(core, node)
        limbo_free(core, limbo)
    elif displaced != NULL and displaced.claim:
        limbo = limbo_by_cookie(core, displaced.claim, root)
        report(reader, node, event, 0)      # moved out of the tree, for something that was moved in
        limbo_free(core, displaced)
        node_free_tree(core, node)
        if limbo != NULL:
            put_back(reader, limbo)
    elif displaced != NULL and not displaced.arrived:
        limbo_free(core, displaced)         # it lives, but nobody told where: it will be found
        node_free_tree(core, node)
    elif not went_back(core, node):
        if displaced != NULL:               # it was an exchange
            limbo_free(core, displaced)
        if root.subscription.mask & BOTH_MOVES != BOTH_MOVES:   # else the pair of events has told it
            report(reader, node, event, 0)
        look_disturb(core, node)
        job_push(core, node)                # see that it is where the pair put it


cdef void removed(Core *core, uint32_t node) noexcept nogil:
    """A directory is at its place no longer."""
    if core.nodes[node].wd < 0 or core.repair:  # what was lost may have put another one here
        node_free_tree(core, node)
    else:
        node_orphan(core, node)             # still open somewhere: its own last events are to come


cdef void entry_event(Reader *reader, uint32_t node, const inotify_event *event, size_t size) noexcept nogil:
    """Take what happened to an entry of a directory into its tree."""
    cdef Core *core = reader.core
    cdef uint32_t child = node_find(core, node, event.name, size) if event.mask & ENTRIES else 0
    if child:
        look_disturb(core, child)
    if event.mask & IN_MOVED_TO:
        moved_to(reader, node, event, size)
    elif not event.mask & IN_ISDIR:
        return
    elif event.mask & IN_CREATE:
        if child and core.nodes[child].wd >= 0:
            removed(core, child)            # what a listing has found is not watched before this event has come
            child = 0
        if child == 0 and may_enter(core, node, event.name, size):
            child = node_new(core, node, core.nodes[node].root, event.name, size)
        if child:
            core.nodes[child].flags |= NODE_CREATED
            job_push(core, child)
    elif event.mask & IN_MOVED_FROM:
        moved_from(core, node, event, size)
    elif event.mask & IN_DELETE and child:
        removed(core, child)


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
    if (core.repair or core.nodes[node].flags & NODE_UNMOUNTED) and core.nodes[node].flags & NODE_INDEXED:
        look_anew(core, node)
    else:
        node_free_tree(core, node)


cdef void look_anew(Core *core, uint32_t node) noexcept nogil:
    """A directory is gone, with its file system or while events are lost: there may be another one at its place."""
    cdef char name[256]
    cdef uint32_t parent = core.nodes[node].parent
    cdef size_t size = core.nodes[node].name_size
    memcpy(name, core.nodes[node].name, size + 1)
    node_free_tree(core, node)
    look_for(core, parent, name, size)


cdef void departed_event(Reader *reader, uint32_t node, const inotify_event *event, size_t size) noexcept nogil:
    """A file that lost the subject's path has something to tell: its end, unless it lives on under another name.

    One that was replaced tells of that by one IN_ATTRIB; one that was removed has done so before. Another one comes
    from a change of what has a name elsewhere, or from the removal of that name: it is not the path's any more.
    """
    cdef Root *root = reader.core.nodes[node].root
    if event.mask & IN_DELETE_SELF or (event.mask & IN_ATTRIB and root.departing):
        report(reader, node, event, size)
        root.departing = False
    elif event.mask & (IN_ATTRIB | IN_MOVE_SELF):
        node_free_tree(reader.core, node)


cdef void node_event(Reader *reader, uint32_t node, const inotify_event *event) noexcept nogil:
    cdef Core *core = reader.core
    cdef size_t size = strlen(event.name) if event.len else 0
    cdef Limbo *limbo
    cdef Root *root = core.nodes[node].root
    if core.nodes[node].flags & NODE_DEPARTED:
        departed_event(reader, node, event, size)
        return
    if event.mask & IN_MOVE_SELF and (core.nodes[node].parent == 0 or not root.unsure):
        if core.nodes[node].parent == 0 or not reader.stale:
            move_self(reader, node, event)
        return
    if root.unsure:
        hold(core, &root.held, node, event)
        return
    if core.limbo_count:
        limbo = limbo_of(core, node)
        if limbo != NULL:
            limbo_hold(core, limbo, node, event)
            return
    if is_older(core, node):                # the tree was seen later than this
        if core.nodes[node].flags & NODE_FIRST:     # but an update takes over from a watch that would have told it
            report(reader, node, event, size)
        return
    if core.nodes[node].flags & NODE_WINDOW:
        window_event(reader, node, event, size)
    if event.mask & IN_UNMOUNT:
        root.unmounted = core.nodes[node].parent == 0
        core.nodes[node].flags |= NODE_UNMOUNTED
        return
    if size and event.mask & (IN_CREATE | IN_MOVED_TO) and not root.mute:
        remember(reader, node, event.name, size)
    report(reader, node, event, size)
    if event.mask & IN_MOVED_TO and root.subscription.mask & IN_MODIFY and size == 6 and memcmp(
            event.name, b"..data", 6) == 0:
        swap_push(core, node)
    if size and root.subscription.recursive and not reader.stale:
        entry_event(reader, node, event, size)
