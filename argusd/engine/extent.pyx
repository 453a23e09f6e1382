# cython: language_level=3, boundscheck=False, wraparound=False
"""How far a tree reaches: which directories the rules let in, and taking one in."""

from argusd.engine.core cimport (
    DEPTH_MAX,
    NODE_CREATED,
    NODE_QUIET,
    NODE_RELIST,
    NODE_UNLISTED,
    NODE_WINDOW,
    NOISY,
    Subscription,
    wd_attach,
)
from argusd.engine.tree cimport is_ignored, node_depth, node_free_below, node_new, node_next
from argusd.engine.window cimport rescan_window, window_open
from argusd.engine.work cimport job_push


cdef bint may_enter(Core *core, uint32_t parent, const char *name, size_t size) noexcept nogil:
    """Is a directory of this name below ``parent`` to be watched?"""
    cdef Subscription *subscription = core.nodes[parent].root.subscription
    cdef uint32_t depth
    if is_ignored(subscription, name, size):
        return False
    depth = node_depth(core, parent)
    return depth < DEPTH_MAX and (subscription.max_depth == 0 or depth < <uint32_t>subscription.max_depth)


cdef void look_for(Core *core, uint32_t parent, const char *name, size_t size) noexcept nogil:
    """There is, or may be, a directory of this name that the tree does not know."""
    cdef uint32_t node = node_new(core, parent, core.nodes[parent].root, name, size)
    if node:
        job_push(core, node)


cdef uint32_t unlisted(Core *core, uint32_t parent, const char *name, size_t size) noexcept nogil:
    """A node for a directory that was there before the listing of ``parent`` is over."""
    cdef uint32_t node = node_new(core, parent, core.nodes[parent].root, name, size)
    if node and core.nodes[parent].flags & NODE_WINDOW:
        core.nodes[node].flags |= NODE_CREATED
    return node


cdef void fit(Core *core, uint32_t top, uint32_t before) noexcept nogil:
    """After a move from depth ``before``: have the tree reach as far from where ``top`` is now as maxDepth lets it."""
    cdef uint32_t limit = <uint32_t>core.nodes[top].root.subscription.max_depth, now
    if limit == 0:
        return
    now = node_depth(core, top)
    if now > before:
        prune(core, top, limit)
    elif now < before:
        widen(core, top, limit + now - before)


cdef void prune(Core *core, uint32_t top, uint32_t limit) noexcept nogil:
    """Drop what is deeper than that below ``top``."""
    cdef uint32_t node = top
    while node:
        if core.nodes[node].first_child and node_depth(core, node) >= limit:
            node_free_below(core, node)
        node = node_next(core, top, node)


cdef void widen(Core *core, uint32_t top, uint32_t depth) noexcept nogil:
    """Have the directories at that depth listed again: nothing below them was looked for before."""
    cdef uint32_t node = top
    while node:
        if node_depth(core, node) == depth:
            core.nodes[node].flags |= NODE_RELIST | NODE_UNLISTED
            job_push(core, node)
        node = node_next(core, top, node)


cdef void bind(Core *core, uint32_t node, int wd) noexcept nogil:
    """``node`` is the directory with this watch descriptor from here on."""
    cdef Subscription *subscription = core.nodes[node].root.subscription
    wd_attach(core, wd, 0, node)
    core.nodes[node].attempts = 0
    core.nodes[node].flags |= NODE_UNLISTED
    if subscription.mask & NOISY:
        core.nodes[node].flags |= NODE_QUIET
    if core.nodes[node].flags & NODE_CREATED:
        window_open(core, node)
    elif core.repair:
        rescan_window(core, node)
    subscription.directories += 1
