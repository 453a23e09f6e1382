# cython: language_level=3, boundscheck=False, wraparound=False
"""What events mean for subject paths: when a path may stand for another file, and what is told of it.

While a step of a path has changed and the look-up is not judged yet, the events of its tree are held back: only then is
it known whose they are. A look-up is judged when the mark that was placed behind it comes out of the queue and no step
has changed since; so each arrival at the path is told exactly once.
"""

from libc.stdint cimport uint32_t
from libc.string cimport memcmp, memset

from argusd._records cimport Buffer, buffer_add, buffer_free
from argusd.engine.anchors cimport anchor_first
from argusd.engine.changes cimport end_node, node_event
from argusd.engine.core cimport NODE_DEPARTED, TRIGGER_DIRECTORY, TRIGGER_LAST, TRIGGER_MOVED, TRIGGER_OVER, Anchor
from argusd.engine.following cimport follow
from argusd.engine.limbo cimport Held, is_full
from argusd.engine.opening cimport same_file
from argusd.engine.report cimport emit_subject
from argusd.engine.tree cimport is_ahead, node_free_below, node_free_tree, node_is
from argusd.engine.work cimport root_push, root_settled
from argusd.includes.linux cimport (
    IN_ATTRIB,
    IN_CREATE,
    IN_DELETE_SELF,
    IN_IGNORED,
    IN_ISDIR,
    IN_MODIFY,
    IN_MOVED_FROM,
    IN_MOVED_TO,
    AT_EMPTY_PATH,
    AT_STATX_DONT_SYNC,
    STATX_NLINK,
    close,
    statx,
    statx_t,
)


cdef enum:
    TRIGGERS_MAX = 65536            # arrivals at a path before it is judged that are told one by one

cdef size_t NEVER = <size_t>-1


cdef void anchored(Reader *reader, const inotify_event *event, size_t size) noexcept nogil:
    """Something happened in a directory that subject paths go through."""
    cdef Anchor *anchor = anchor_first(reader.core, event.wd)
    while anchor != NULL:
        if (anchor.wd == event.wd and anchor.name_size == size and memcmp(anchor.name, event.name, size) == 0
                and not is_ahead(reader.core, anchor.mark)):
            trigger(reader, anchor, event)
        anchor = anchor.next_on_wd


cdef bint followed(Reader *reader, Anchor *anchor, const inotify_event *event) noexcept nogil:
    """For a followMove subject: did it only move? Then there is nothing more to do.

    Its descriptor keeps a deleted file alive: that is let go here, so that the kernel can tell its end.
    """
    cdef Root *root = anchor.root
    cdef statx_t status
    if root.follow_fd < 0:
        return False
    if event.mask & IN_MOVED_FROM and anchor.own:
        return True                         # its own IN_MOVE_SELF is next, reported under the old path
    if statx(root.follow_fd, b"", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_NLINK, &status) == 0 and (
            status.stx_nlink == 0):
        close(root.follow_fd)
        root.follow_fd = -1
    elif event.mask & IN_ISDIR and not anchor.own:      # wherever that takes it, it is followed
        follow(reader.core, root)
        root_push(reader.core, root)        # for the anchors of the new path
        return True
    return False


cdef void note_path(Core *core, Root *root, bint there) noexcept nogil:
    """Among the events that are held back: from here on something is at the path, or nothing."""
    cdef Held held
    cdef inotify_event event
    if is_full(core, &root.held):
        return
    memset(&held, 0, sizeof(held))
    memset(&event, 0, sizeof(event))
    held.serial = there
    buffer_add(&root.held, <const char *>&held, sizeof(held))
    buffer_add(&root.held, <const char *>&event, sizeof(event))


cdef void forget_held(Root *root) noexcept nogil:
    """What was held back is lost."""
    buffer_free(&root.held)
    root.left_at = 0
    root.back_at = 0 if root.back_at != NEVER else NEVER


cdef void trigger(Reader *reader, Anchor *anchor, const inotify_event *event) noexcept nogil:
    """A step of a subject path has changed: look again, and hold back what comes until that is done."""
    cdef Core *core = reader.core
    cdef Root *root = anchor.root
    cdef char kind = 0
    if followed(reader, anchor, event):
        return
    if event.mask & (IN_CREATE | IN_MOVED_TO):
        kind = ((TRIGGER_LAST if anchor.last else 0) | (TRIGGER_MOVED if event.mask & IN_MOVED_TO else 0)
                | (TRIGGER_DIRECTORY if event.mask & IN_ISDIR else 0) | (TRIGGER_OVER if anchor.present else 0))
        if root.triggers.size < TRIGGERS_MAX:
            buffer_add(&root.triggers, &kind, 1)
        anchor.present = True
    else:
        anchor.present = False
    if (root.top or root.next_top) and not root.arming:     # a first walk may be long, and goes on
        root.unsure = True
    if not root.left and (not kind or kind & TRIGGER_OVER):
        root.left = True
        root.left_at = root.held.size
        root.back_at = NEVER
    if kind:
        root.back_at = root.held.size
    if root.next_top:
        note_path(core, root, kind != 0)
    root.moved = root.moved or not anchor.last or (event.mask & IN_MOVED_FROM) != 0
    root.elsewhere = root.elsewhere or not anchor.own or (event.mask & IN_MOVED_FROM) != 0
    root_push(core, root)


cdef bint in_tree(Core *core, uint32_t node, uint32_t top) noexcept nogil:
    while core.nodes[node].parent:
        node = core.nodes[node].parent
    return node == top


cdef void replay_root(Reader *reader, const Buffer *events, size_t begin, size_t end, uint32_t top,
                      uint32_t mask, bint leaves) noexcept nogil:
    """Handle some of the events that were held back for one of the trees of a root.

    ``leaves``: when nothing was at the path, its file was elsewhere; nothing is told of that.
    """
    cdef Core *core = reader.core
    cdef Root *root = core.nodes[top].root
    cdef bint mute = root.mute if top else False
    cdef const Held *held
    cdef const inotify_event *event
    cdef size_t at = begin
    while top and at < end:
        held = <const Held *>(events.data + at)
        event = <const inotify_event *>(events.data + at + sizeof(Held))
        at += sizeof(Held) + sizeof(inotify_event) + event.len
        if held.node == 0:
            root.mute = mute or (leaves and not held.serial)
            continue
        if not event.mask & mask or not node_is(core, held.node, held.serial) or not in_tree(core, held.node, top):
            continue
        reader.number += 1
        reader.stale = held.passed < core.fence_first
        core.event_passed = held.passed
        if event.mask & IN_IGNORED:
            end_node(core, held.node)
        else:
            node_event(reader, held.node, event)
    reader.stale = False
    core.event_passed = core.fence_passed
    if top:
        root.mute = mute


cdef void tell_arrivals(Reader *reader, Root *root, const Buffer *triggers, bint known, bint other) noexcept nogil:
    """Report that the path came to stand for another file, once for each time that the kernel told so.

    ``other``: it stands for another file than before. Otherwise it counts only when things were put over one another
    more than once: it stood for another file in between.
    """
    cdef size_t i
    cdef int told = 0, over = 0
    cdef char kind
    cdef bint last = False
    for i in range(triggers.size):
        last = last or triggers.data[i] & TRIGGER_LAST
        over += 1 if triggers.data[i] & TRIGGER_OVER else 0
    for i in range(triggers.size):
        kind = triggers.data[i]
        if not other and (over < 2 or not kind & TRIGGER_OVER):
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
    cdef bint directory
    for i in range(triggers.size):
        directory = (triggers.data[i] & TRIGGER_DIRECTORY) != 0
        if (triggers.data[i] & TRIGGER_LAST and not triggers.data[i] & TRIGGER_MOVED
                and (directory or not root.subscription.only_dir)):
            root.directory = directory
            emit_subject(reader, root, IN_CREATE)
            emit_subject(reader, root, IN_MODIFY)


cdef bint was_replaced(const Buffer *triggers) noexcept nogil:
    """True if something was put over what the path stood for."""
    cdef size_t i
    for i in range(triggers.size):
        if triggers.data[i] & TRIGGER_OVER:
            return True
    return False


cdef void depart(Reader *reader, Root *root, const Buffer *held, bint replaced, bint left,
                 size_t left_at) noexcept nogil:
    """The file of a subject path is there no longer. One that still lives and only lost its name may tell its end.

    Not one that has not ``left``: a mount covers it.
    """
    cdef Core *core = reader.core
    cdef uint32_t top = root.top
    if root.elsewhere or not left:
        node_free_tree(core, top)
        return
    node_free_below(core, top)
    if root.departed:
        node_free_tree(core, root.departed)
    root.departed = top
    root.top = 0
    core.nodes[top].flags |= NODE_DEPARTED
    root.departing = replaced
    replay_root(reader, held, left_at, held.size, top, IN_DELETE_SELF | IN_ATTRIB, False)


cdef void replay_before(Reader *reader, Root *root, const Buffer *held, size_t left_at, size_t back_at) noexcept nogil:
    """Handle what was held back of the file that the path stood for, as long as it stood for it."""
    cdef Core *core = reader.core
    cdef uint32_t top = root.top, all_events = 0xFFFFFFFF
    cdef uint32_t serial = core.nodes[top].serial
    replay_root(reader, held, 0, left_at, top, all_events, False)
    if not node_is(core, top, serial) or root.top != top:
        return
    if core.nodes[top].wd < 0 and root.elsewhere:
        end_node(core, top)                 # what happened to it happened at another place
    elif core.nodes[top].wd < 0:            # it lost the path by its own end
        replay_root(reader, held, left_at, held.size, top, all_events, False)
    elif root.found.valid and not root.next_top:
        root.mute = True                    # it was at another place
        replay_root(reader, held, left_at, back_at, top, all_events, False)
        root.mute = False
        replay_root(reader, held, back_at, held.size, top, all_events, False)


cdef void judge(Reader *reader, Root *root) noexcept nogil:
    """A look-up and every event before it are known: what does the subject path stand for, and what was it before?"""
    cdef Core *core = reader.core
    cdef uint32_t next_top = root.next_top
    cdef Buffer held = root.held, triggers = root.triggers
    cdef bint left = root.left and root.follow_fd < 0   # what is followed is never elsewhere
    cdef size_t left_at = min(root.left_at, held.size) if left else held.size
    cdef size_t back_at = min(root.back_at, held.size) if left else held.size   # events that told it may be lost
    cdef bint known = root.known.valid, other       # before the file's own end is handled
    root_settled(core, root)
    memset(&root.held, 0, sizeof(Buffer))
    memset(&root.triggers, 0, sizeof(Buffer))
    root.unsure = False
    root.left = False
    if root.top:
        replay_before(reader, root, &held, left_at, back_at)
    if not root.found.valid:
        if root.top:
            depart(reader, root, &held, was_replaced(&triggers), left, left_at)
        root.away = root.known.valid and (root.away or root.moved)
        root.known.valid = root.away
        tell_passage(reader, root, &triggers)
    else:
        other = next_top != 0 and not same_file(&root.known, &root.found)   # else the watch itself says: the same
        if next_top:
            if root.top:
                depart(reader, root, &held, was_replaced(&triggers), left, left_at)
            root.top = next_top
            root.next_top = 0
            if root.follow_fd >= 0:
                close(root.follow_fd)
            root.follow_fd = root.next_follow_fd
            root.next_follow_fd = -1
        root.known = root.found
        root.away = False
        if other or root.follow_fd < 0:
            tell_arrivals(reader, root, &triggers, known, other)
        replay_root(reader, &held, 0, held.size, next_top, 0xFFFFFFFF, True)
    root.moved = False
    root.elsewhere = False
    buffer_free(&held)
    buffer_free(&triggers)
