# cython: language_level=3, boundscheck=False, wraparound=False
"""The directories that subject paths lead through, and the names in them that matter."""

from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy

from argusd.engine.core cimport ANCHORED, ANCHOR_BUCKETS, WdEntry, fence_place, wd_find, wd_release
from argusd.engine.tree cimport node_free_tree
from argusd.engine.dispatch cimport root_unqueue
from argusd.engine.work cimport root_push, root_settled


cdef inline uint32_t bucket(int wd) noexcept nogil:
    return (<uint32_t>wd * <uint32_t>2654435769) & (ANCHOR_BUCKETS - 1)


cdef Anchor *anchor_first(Core *core, int wd) noexcept nogil:
    """The first anchor of the bucket; others may be of another watch descriptor."""
    return core.anchors[bucket(wd)]


cdef Anchor *anchor_add(Core *core, Root *root, int wd, const char *name, size_t size, bint last) noexcept nogil:
    """Note that the path of ``root`` goes through ``name`` in a watched directory. NULL: out of memory."""
    cdef Anchor *anchor = root.anchors
    cdef WdEntry *entry
    while anchor != NULL:
        if anchor.wd == wd and anchor.name_size == size and memcmp(anchor.name, name, size) == 0:
            anchor.round = root.round
            anchor.last = last
            return anchor
        anchor = anchor.next_in_root
    anchor = <Anchor *>calloc(1, sizeof(Anchor))
    if anchor == NULL:
        return NULL
    anchor.name = <char *>malloc(size + 1)
    entry = wd_find(core, wd)
    if anchor.name == NULL or entry == NULL:
        free(anchor.name)
        free(anchor)
        return NULL
    memcpy(anchor.name, name, size)
    anchor.name[size] = 0
    anchor.name_size = <unsigned char>size
    anchor.wd = wd
    anchor.last = last
    anchor.round = root.round
    anchor.root = root
    anchor.fresh = True
    anchor.next_in_root = root.anchors
    root.anchors = anchor
    anchor.next_on_wd = core.anchors[bucket(wd)]
    core.anchors[bucket(wd)] = anchor
    entry.mask |= ANCHORED
    return anchor


cdef void anchor_free(Core *core, Anchor *anchor) noexcept nogil:
    """Take an anchor, already out of its root's list, off its watch descriptor."""
    cdef Anchor **link = &core.anchors[bucket(anchor.wd)]
    cdef WdEntry *entry
    cdef Anchor *other
    while link[0] != anchor:
        link = &link[0].next_on_wd
    link[0] = anchor.next_on_wd
    other = core.anchors[bucket(anchor.wd)]
    while other != NULL and other.wd != anchor.wd:
        other = other.next_on_wd
    entry = wd_find(core, anchor.wd)
    if other == NULL and entry != NULL:
        entry.mask &= ~<uint32_t>ANCHORED
        if entry.first == 0:
            wd_release(core, anchor.wd)
    free(anchor.name)
    free(anchor)


cdef void anchors_drop(Core *core, Root *root, bint all) noexcept nogil:
    """Forget the anchors that the last look-up did not come by, or all."""
    cdef Anchor **link = &root.anchors
    cdef Anchor *anchor
    while link[0] != NULL:
        anchor = link[0]
        if all or anchor.round != root.round:
            link[0] = anchor.next_in_root
            anchor_free(core, anchor)
        else:
            link = &anchor.next_in_root


cdef void anchors_lose(Core *core, int wd) noexcept nogil:
    """A directory that paths go through is gone: look those paths up again."""
    cdef Anchor *anchor = core.anchors[bucket(wd)]
    cdef Anchor *after
    cdef Anchor **link
    while anchor != NULL:
        after = anchor.next_on_wd
        if anchor.wd == wd:
            root_push(core, anchor.root)
            link = &anchor.root.anchors
            while link[0] != anchor:
                link = &link[0].next_in_root
            link[0] = anchor.next_in_root
            anchor_free(core, anchor)
        anchor = after


cdef void root_end(Core *core, Root *root) noexcept nogil:
    """Let go of all that a subject path has in the trees and tables."""
    root_unqueue(core, root)
    root_settled(core, root)
    if root.starved:
        root.starved = False
        core.starving_roots -= 1
        core.starving -= 1
        root.subscription.place.starved_now -= 1
    anchors_drop(core, root, True)
    if root.top:
        node_free_tree(core, root.top)
    if root.next_top:
        node_free_tree(core, root.next_top)
    if root.departed:
        node_free_tree(core, root.departed)
    if root.rescan:
        root.rescan = False
        core.repairing -= 1
        fence_place(core)           # the reader ends the repair when it comes by
