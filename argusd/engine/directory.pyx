# cython: language_level=3, boundscheck=False, wraparound=False
"""Bringing one directory in line with the file system: arm and list it, or check that it is where the tree has it.

The walker may be ahead of the reader: what it finds at a name may be there because of events that are still in the
queue. So nothing is believed against the tree before a mark that is placed now has come out of the queue.
"""

from libc.errno cimport ELOOP, ENOENT, ENOMEM, ENOTDIR, ESTALE
from libc.stdint cimport uint64_t
from libc.string cimport memcpy

from argusd.engine.core cimport (
    NODE_CREATED,
    NODE_DISPLACED,
    NODE_DOUBT,
    NODE_EXPECT,
    NODE_FIRST,
    NODE_LIMBO,
    NODE_MOVED,
    NODE_ORPHAN,
    NODE_QUEUED,
    NODE_QUIET,
    NODE_RELIST,
    NOISY,
    STRUCTURE,
    Core,
    Identity,
    Job,
    Root,
    WdEntry,
    core_lock,
    core_unlock,
    fence_if_needed,
    wd_attach,
    wd_detach,
    wd_find,
    wd_stray,
)
from argusd.engine.listing cimport expect_echoes, list_directory, listing_done, rescan_window
from argusd.engine.opening cimport add_watch, below, identify, same_file
from argusd.engine.tree cimport node_below, node_free_below, node_is, node_move, node_next
from argusd.engine.walk cimport chain_push, failed, lost, node_open, parent_open, stack_push, walk_enter
from argusd.engine.window cimport window_open
from argusd.engine.work cimport job_push, retry_push
from argusd.includes.linux cimport IN_DELETE, IN_DELETE_SELF, IN_MODIFY, IN_MOVED_TO, IN_MOVE_SELF, close
from argusd.includes.pthread cimport load_int


cdef uint32_t other_place(Core *core, uint32_t node, int wd) noexcept nogil:
    """Another node of the same tree that holds this watch descriptor, or 0."""
    cdef WdEntry *entry = wd_find(core, wd)
    cdef uint32_t other = entry.first if entry != NULL else 0
    while other and (other == node or core.nodes[other].root != core.nodes[node].root):
        other = core.nodes[other].next_on_wd
    return other


cdef bint take_over(Walk *walk, uint32_t node, uint32_t serial, uint32_t other) noexcept nogil:
    """A directory was found at ``node`` that the tree has at ``other``; called with the lock held.

    Either the tree is behind the file system: then the watch and what is below move here, and ``other`` is looked at
    again. Or the directory really is at both places (a bind mount): then the first one keeps it. True when taken over.
    """
    cdef Core *core = walk.core
    cdef uint32_t other_serial = core.nodes[other].serial, child
    cdef int fd, wd = core.nodes[other].wd
    if node_below(core, node, other) or node_below(core, other, node):
        return False
    if not core.nodes[other].flags & (NODE_LIMBO | NODE_DISPLACED):
        core_unlock(core)
        fd = node_open(walk, other, other_serial)
        if fd >= 0:
            close(fd)
        core_lock(core)
        if fd >= 0 or not node_is(core, node, serial) or not node_is(core, other, other_serial):
            return False
        if core.nodes[other].wd != wd:
            return False
    wd_attach(core, wd, 0, node)
    wd_detach(core, other)
    core.nodes[node].flags |= core.nodes[other].flags & NODE_QUIET
    while core.nodes[other].first_child:
        child = core.nodes[other].first_child
        node_move(core, child, node, core.nodes[child].name, core.nodes[child].name_size)
    if not core.nodes[other].flags & (NODE_LIMBO | NODE_DISPLACED):
        job_push(core, other)
    return True


cdef uint32_t wanted(const Subscription *subscription, bint quiet) noexcept nogil:
    cdef uint32_t mask = subscription.mask
    if mask & IN_MODIFY:
        mask |= IN_MOVED_TO         # of ..data, in a Kubernetes volume
    if subscription.recursive:
        mask |= STRUCTURE
        if mask & IN_DELETE_SELF:
            mask |= IN_DELETE           # so that a late IN_DELETE_SELF is told under the right path
        if quiet:
            mask &= ~NOISY
    if subscription.follow_move:
        mask |= IN_MOVE_SELF
    return mask


cdef int arm(Walk *walk, uint32_t node, uint32_t serial, int fd, const char *name, int parent_wd) noexcept nogil:
    """Watch the directory behind ``fd`` as ``node``. Returns its watch descriptor when it is to be listed, else -1."""
    cdef Core *core = walk.core
    cdef Subscription *subscription = walk.root.subscription
    cdef uint32_t other
    cdef uint32_t mask = wanted(subscription, core.nodes[node].wd < 0)
    cdef int wd = add_watch(core, fd, mask)
    if wd < 0:
        failed(walk, node, -wd)
        return -1
    if core.nodes[node].wd == wd:
        wd_attach(core, wd, mask, 0)
        core.nodes[node].flags &= <unsigned short>~NODE_QUIET
        core.nodes[node].attempts = 0
        core.nodes[node].flags &= <unsigned short>~NODE_DOUBT
        if walk.rescan:
            rescan_window(core, node)
        elif not core.nodes[node].flags & NODE_RELIST:
            return -1
        core.nodes[node].flags &= <unsigned short>~NODE_RELIST
        expect_echoes(walk, wd, parent_wd, name)
        return wd
    other = other_place(core, node, wd)
    if (core.nodes[node].wd >= 0 or other) and not core.nodes[node].flags & NODE_DOUBT:
        # The tree has another directory here, or this one elsewhere. Events on their way may say why: look again then.
        wd_stray(core, wd, mask)
        core.nodes[node].flags |= NODE_DOUBT
        retry_push(core, node, False, walk.rescan)
        return -1
    core.nodes[node].flags &= <unsigned short>~NODE_DOUBT
    if core.nodes[node].wd >= 0:
        node_free_below(core, node)
        wd_detach(core, node)
    if other:
        if wd_attach(core, wd, mask, 0) != NULL:
            take_over(walk, node, serial, other)
        return -1
    if wd_attach(core, wd, mask, node) == NULL:
        failed(walk, node, ENOMEM)
        return -1
    core.nodes[node].attempts = 0
    core.nodes[node].flags &= <unsigned short>~NODE_EXPECT
    if subscription.mask & NOISY:
        core.nodes[node].flags |= NODE_QUIET
    if core.nodes[node].flags & NODE_CREATED:
        window_open(core, node)
    expect_echoes(walk, wd, parent_wd, name)
    subscription.directories += 1
    return wd


cdef bint still_there(int parent_fd, const char *name, int fd) noexcept nogil:
    """Does the name still lead to the directory that was opened and is watched by now?"""
    cdef Identity first, second
    cdef int again = below(parent_fd, name)
    cdef bint same
    if again < 0:
        return False
    same = identify(fd, &first) and identify(again, &second) and same_file(&first, &second)
    close(again)
    return same


cdef void withdraw(Walk *walk, uint32_t node, uint32_t serial, int wd) noexcept nogil:
    """A directory was replaced while it was being armed: begin again when the events that tell have been handled."""
    cdef Core *core = walk.core
    core_lock(core)
    if node_is(core, node, serial) and core.nodes[node].wd == wd:
        wd_detach(core, node)
        retry_push(core, node, False, walk.rescan)
    core_unlock(core)
    listing_done(walk, node, serial, 0, 0)


cdef void step(Walk *walk, uint32_t node, uint32_t serial) noexcept nogil:
    """Bring one directory in line with the file system: arm and list it, or check that it is where the tree has it."""
    cdef Core *core = walk.core
    cdef Root *root
    cdef uint32_t parent, parent_serial
    cdef char name[256]
    cdef int parent_fd, fd, error, parent_wd, wd = -1
    cdef bint moved, fresh = False
    cdef uint64_t born
    core_lock(core)
    if not node_is(core, node, serial) or core.nodes[node].root.subscription.cancelled:
        core_unlock(core)
        return
    moved = (core.nodes[node].flags & NODE_MOVED) != 0
    core.nodes[node].flags &= <unsigned short>~(NODE_QUEUED | NODE_MOVED)
    root = core.nodes[node].root
    parent = core.nodes[node].parent
    if parent == 0 or core.nodes[node].flags & (NODE_LIMBO | NODE_DISPLACED | NODE_ORPHAN):
        core_unlock(core)
        return
    if moved:
        core.nodes[node].flags &= <unsigned short>~NODE_DOUBT
    if core.nodes[node].attempts < 255:
        core.nodes[node].attempts += 1
    parent_serial = core.nodes[parent].serial
    memcpy(name, core.nodes[node].name, <size_t>core.nodes[node].name_size + 1)
    core_unlock(core)

    error = walk_enter(walk, root)
    parent_fd = parent_open(walk, parent, parent_serial) if not error else -error
    if parent_fd < 0:
        if parent_fd == -ENOENT or parent_fd == -ENOTDIR or parent_fd == -ELOOP:
            parent_fd = -ESTALE         # the tree is behind on the way there
        lost(walk, node, serial, -parent_fd)
        return
    fd = below(parent_fd, name)
    if fd < 0:
        lost(walk, node, serial, -fd)
        return
    core_lock(core)
    if node_is(core, node, serial) and not root.subscription.cancelled:
        if core.nodes[node].flags & (NODE_MOVED | NODE_LIMBO | NODE_DISPLACED):
            retry_push(core, node, False, walk.rescan)
        else:
            parent_wd = core.nodes[parent].wd if node_is(core, parent, parent_serial) else -1
            fresh = core.nodes[node].wd < 0
            born = fence_if_needed(core) if fresh else 0
            wd = arm(walk, node, serial, fd, name, parent_wd)
            if wd >= 0 and fresh:
                core.nodes[node].born = <uint32_t>born
                core.nodes[node].flags |= NODE_FIRST if walk.initial else 0
    core_unlock(core)
    if wd < 0:
        close(fd)
        return
    if fresh and not walk.initial and not still_there(parent_fd, name, fd):
        close(fd)
        withdraw(walk, node, serial, wd)
        return
    chain_push(walk, node, serial, fd)
    list_directory(walk, node, serial, fd, wd)


cdef void drain_stack(Walk *walk) noexcept nogil:
    cdef Job job
    while walk.stack_count and not walk.error and not load_int(&walk.core.stopping):
        walk.stack_count -= 1
        job = walk.stack[walk.stack_count]
        step(walk, job.node, job.serial)
    walk.stack_count = 0


cdef void finish(Walk *walk, uint32_t top, uint32_t serial) noexcept nogil:
    """After all reads of a tree are over, ask for the events that these reads would have caused."""
    cdef Core *core = walk.core
    cdef uint32_t node
    core_lock(core)
    if node_is(core, top, serial) and core.nodes[top].root.subscription.mask & NOISY:
        node = top
        while node:
            if core.nodes[node].flags & NODE_QUIET and core.nodes[node].wd >= 0 and core.nodes[node].parent:
                stack_push(walk, node)
            node = node_next(core, top, node)
    core_unlock(core)
    drain_stack(walk)
