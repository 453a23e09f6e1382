# cython: language_level=3, boundscheck=False, wraparound=False
"""Bringing one directory in line with the file system: arm and list it, or check that it is where the tree has it.

The walker may be ahead of the reader: what it finds at a name may be there because of events that are still in the
queue. So nothing is believed against the tree before a mark that is placed now has come out of the queue.
"""

from libc.errno cimport EAGAIN, EDQUOT, ENOENT, ENOMEM, ESTALE
from libc.stdint cimport uint64_t
from libc.string cimport memcpy

from argusd.engine.core cimport (
    NODE_DISPLACED,
    NODE_INDEXED,
    NODE_LIMBO,
    NODE_MOVED,
    NODE_ORPHAN,
    NODE_QUEUED,
    NODE_QUIET,
    NODE_RELIST,
    NODE_RESCAN,
    NOISY,
    STRUCTURE,
    Core,
    Job,
    Look,
    Root,
    core_lock,
    core_unlock,
    fence_if_needed,
    fence_place,
    wd_attach,
    wd_detach,
    wd_stands,
    wd_unused,
)
from argusd.engine.extent cimport bind, fit
from argusd.engine.limbo cimport is_at
from argusd.engine.listing cimport list_directory, list_readable, listing_begin
from argusd.engine.opening cimport add_watch, barrier, identify, same_file, step_below
from argusd.engine.starving cimport share_is_used
from argusd.engine.tree cimport node_below, node_depth, node_free_tree, node_is, node_move, node_next, other_place
from argusd.engine.walk cimport (
    chain_push,
    failed,
    is_absence,
    lost,
    node_open,
    parent_open,
    put_off,
    stack_push,
    take_later,
    wait_for_reader,
    walk_enter,
)
from argusd.engine.window cimport rescan_window
from argusd.engine.work cimport job_push, look_begin, look_end, look_found, proof_take, retry_push
from argusd.includes.linux cimport IN_DELETE, IN_DELETE_SELF, IN_MODIFY, IN_MOVED_TO, IN_MOVE_SELF, close
from argusd.includes.pthread cimport load_int


cdef enum:
    SIBLINGS = 8                    # opened one after the other, before one barrier in the directory that they are in
    PATIENCE = 8                    # looks at one directory by a first walk; the walker thread goes on


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
    if subscription.guard != NULL:
        mask |= IN_DELETE_SELF          # the kernel takes no empty mask
    return mask


cdef void move_here(Walk *walk, const Look *look, uint32_t other) noexcept nogil:
    """A directory is where was looked, as is proven, that the tree has at ``other``; called with the lock held.

    Either the tree is wrong: then the watch and what is below move here, and ``other`` is looked at again. Or the
    directory really is at both places (a bind mount): then the first one keeps it.
    """
    cdef Core *core = walk.core
    cdef uint32_t node = look.node, other_serial = core.nodes[other].serial, child
    cdef int fd, wd = core.nodes[other].wd
    if node_below(core, node, other) or node_below(core, other, node):
        return
    core_unlock(core)
    fd = node_open(walk, other, other_serial)
    if fd >= 0:
        close(fd)
    core_lock(core)
    if fd >= 0 or not node_is(core, node, look.serial):
        return
    if (not node_is(core, other, other_serial) or core.nodes[other].wd != wd or not is_at(core, look)
            or not (is_absence(-fd) or fd == -ESTALE)
            or node_below(core, node, other) or node_below(core, other, node)):
        retry_push(core, node)
        return
    wd_detach(core, node)
    wd_attach(core, wd, 0, node)
    wd_detach(core, other)
    core.nodes[node].flags |= core.nodes[other].flags & (NODE_QUIET | NODE_RESCAN)
    while core.nodes[other].first_child:
        child = core.nodes[other].first_child
        if core.nodes[child].flags & NODE_INDEXED:
            node_move(core, child, node, core.nodes[child].name, core.nodes[child].name_size)
        else:                           # on the move, or gone: what comes to that is found by the listing
            node_free_tree(core, child)
    fit(core, node, node_depth(core, other))
    core.nodes[node].flags |= NODE_RELIST
    job_push(core, node)
    job_push(core, other)


# One directory that is being looked at.
cdef struct Visit:
    Look *look
    uint32_t node
    uint32_t serial
    uint32_t parent
    uint32_t parent_serial
    Root *root
    int parent_wd
    int parent_fd                   # of the chain
    bint readable                   # that it was opened to be read is reported to nobody
    int fd                          # what stands there
    int wd                          # of that when it is to be listed, else -1
    bint new                        # what was found is to be concluded
    bint quiet                      # it is asked for without the events that reading it causes
    bint full                       # its container has its share of the watches: it is not asked for at all
    uint32_t mask                   # what it is asked for
    unsigned long long since        # watches that had gone before it was
    int watched                     # its watch descriptor, or a negative errno
    char name[256]

cdef enum:
    IDLE = 0                        # there is nothing to be done
    ELSEWHERE = 1                   # it is in another directory than the one before
    LOOKED_AT = 2


cdef int verified(Walk *walk, uint32_t node, int wd) noexcept nogil:
    """A directory is where the tree has it. Returns its watch descriptor when it is to be listed, else -1."""
    cdef Core *core = walk.core
    core.nodes[node].flags &= <unsigned short>~NODE_QUIET
    if not core.nodes[node].flags & (NODE_RELIST | NODE_RESCAN):
        core.nodes[node].attempts = 0
        return -1
    if core.repair:
        rescan_window(core, node)
    core.nodes[node].flags &= <unsigned short>~NODE_RELIST
    return wd


cdef bint found(Walk *walk, Visit *visit, bint *elsewhere) noexcept nogil:
    """A directory that is watched by now is, or was just now, where was looked.

    True when that is to be concluded. Else ``visit.wd`` is set when the tree has just this directory here.
    ``elsewhere``: the tree has it at another place.
    """
    cdef Core *core = walk.core
    cdef Look *look = visit.look
    cdef uint32_t node = look.node, other
    cdef int watched = visit.watched
    if watched == -EAGAIN:
        retry_push(core, node)
        return False
    if watched < 0:
        failed(walk, node, -watched)
        return False
    if core.nodes[node].wd == watched:
        if visit.quiet:                 # another walk has armed it meanwhile
            retry_push(core, node)
        else:
            visit.wd = watched
        return False
    other = other_place(core, node, watched)
    elsewhere[0] = other != 0
    if other and same_file(&look.found, &walk.proven) and look.still:
        move_here(walk, look, other)
        wd_unused(core, watched)
        return False
    look_found(core, look, watched)
    return True


cdef bint is_plain(Core *core, const Look *look) noexcept nogil:
    """Is there nothing that only the reader can do?"""
    cdef uint32_t node = look.node
    if look.held.size or not node_is(core, node, look.serial):
        return False
    return not look.wd or (core.nodes[node].wd < 0 and not other_place(core, node, look.wd))


cdef int conclude(Walk *walk, Look *look) noexcept nogil:
    """What was found may be ahead of what the reader knows: then it decides, when it comes by a mark placed now.

    When the reader is idle it knows all. Returns a watch descriptor when the directory is to be listed, else -1.
    """
    cdef Core *core = walk.core
    cdef uint32_t node = look.node
    cdef int wd = -1
    cdef uint64_t fence = fence_if_needed(core)
    if fence or not is_plain(core, look):
        look.fence = fence if fence else fence_place(core)
        walk.looks += 1
        if walk.initial and look.wd and node_is(core, node, look.serial) and core.nodes[node].attempts <= PATIENCE:
            look.initial = True
            put_off(walk, node)
        return -1
    if not is_at(core, look):           # what came there has a job of its own
        if core.nodes[node].wd != look.wd:
            job_push(core, node)
    elif look.wd:
        wd = look.wd
        bind(core, node, wd)
    else:
        node_free_tree(core, node)
    look_end(core, look)
    return wd


cdef int visit_begin(Walk *walk, const Job *job, const Visit *before, Visit *visit) noexcept nogil:
    """Begin to look at the place of a directory. ``before`` is a look in which it is to share, or NULL."""
    cdef Core *core = walk.core
    cdef uint32_t node = job.node
    core_lock(core)
    if not node_is(core, node, job.serial) or core.nodes[node].root.subscription.cancelled:
        core_unlock(core)
        return IDLE
    visit.node, visit.serial = node, job.serial
    visit.parent = core.nodes[node].parent
    visit.parent_serial = core.nodes[visit.parent].serial
    if before != NULL and (visit.parent != before.parent or visit.parent_serial != before.parent_serial):
        core_unlock(core)
        return ELSEWHERE
    if core.nodes[node].flags & NODE_MOVED:
        core.nodes[node].attempts = 0
    core.nodes[node].flags &= <unsigned short>~(NODE_QUEUED | NODE_MOVED)
    if visit.parent == 0 or core.nodes[node].flags & (NODE_LIMBO | NODE_DISPLACED | NODE_ORPHAN):
        core_unlock(core)
        return IDLE
    proof_take(core, node, &walk.proven)
    visit.look = look_begin(core, node)
    if visit.look == NULL:
        core_unlock(core)
        walk.error = ENOMEM
        return IDLE
    if core.nodes[node].attempts < 255:
        core.nodes[node].attempts += 1
    visit.parent_wd = core.nodes[visit.parent].wd
    memcpy(visit.name, core.nodes[node].name, <size_t>core.nodes[node].name_size + 1)
    visit.root = core.nodes[node].root
    visit.quiet = core.nodes[node].wd < 0
    visit.mask, visit.since, visit.watched = wanted(visit.root.subscription, visit.quiet), core.gone, -1
    visit.full = visit.quiet and share_is_used(core, visit.root)
    # One that is watched already may be asked for what opening and closing it reports while it is open.
    visit.readable = core.noisy == 0 and core.nodes[node].wd < 0
    core_unlock(core)
    return LOOKED_AT


cdef void take_watch(Core *core, Visit *visit) noexcept nogil:
    """Note the watch that was asked for without the lock."""
    if visit.watched < 0:
        return
    if not wd_stands(core, visit.watched, visit.since):
        visit.watched = -EAGAIN
    elif wd_attach(core, visit.watched, visit.mask, 0) == NULL:
        visit.watched = -ENOMEM


cdef bint visit_look(Walk *walk, Visit *visit) noexcept nogil:
    """Open what stands there, and watch it; False when its place cannot be reached."""
    cdef Core *core = walk.core
    cdef uint32_t node = visit.node, parent = visit.parent
    cdef bint elsewhere = False
    cdef int error = walk_enter(walk, visit.root)
    visit.parent_fd = parent_open(walk, parent, visit.parent_serial) if not error else -error
    visit.wd, visit.new = -1, False
    if visit.parent_fd < 0:
        lost(walk, visit.look, -visit.parent_fd)
        return False
    visit.fd = step_below(visit.parent_fd, visit.name, True) if visit.readable else -ENOENT
    if visit.fd < 0:
        visit.readable = False
        visit.fd = step_below(visit.parent_fd, visit.name, False)
    if visit.fd >= 0 and walk.proven.valid:
        identify(visit.fd, &visit.look.found)
    if visit.fd >= 0:
        visit.watched = add_watch(core, visit.fd, visit.mask) if not visit.full else -EDQUOT
    core_lock(core)
    take_watch(core, visit)
    if not node_is(core, node, visit.serial) or visit.root.subscription.cancelled:
        pass
    elif not node_is(core, parent, visit.parent_serial) or core.nodes[parent].wd != visit.parent_wd:
        retry_push(core, node)          # what was opened as its parent is not what the tree has there by now
    elif core.nodes[node].flags & (NODE_MOVED | NODE_LIMBO | NODE_DISPLACED):
        pass                            # events go on with it
    elif visit.fd >= 0:
        visit.new = found(walk, visit, &elsewhere)
        if visit.wd >= 0:
            visit.wd = verified(walk, node, visit.wd)
    elif is_absence(-visit.fd):
        visit.new = True
    else:
        failed(walk, node, -visit.fd)
    if not visit.new:
        look_end(core, visit.look)
    if visit.watched > 0:
        wd_unused(core, visit.watched)
    core_unlock(core)
    if visit.new and elsewhere and not visit.look.found.valid:
        identify(visit.fd, &visit.look.found)   # the look is nobody else's before it is concluded
    return True


cdef void visit_end(Walk *walk, Visit *visit) noexcept nogil:
    """Conclude what was found, and list the directory if that is to be done."""
    cdef Core *core = walk.core
    core_lock(core)
    if visit.new:
        visit.wd = conclude(walk, visit.look)
    if visit.wd >= 0:
        listing_begin(walk, visit.node, visit.serial, visit.wd, visit.parent_wd, visit.name)
        walk.looks += core.repair       # the mark behind the listing
    core_unlock(core)
    if walk.looks >= core.pace:
        wait_for_reader(core)
        walk.looks = 0
    if visit.wd >= 0 and visit.readable:
        list_readable(walk, visit.node, visit.serial, visit.fd, visit.wd)
    elif visit.wd >= 0:
        chain_push(walk, visit.node, visit.serial, visit.fd)
        list_directory(walk, visit.node, visit.serial, visit.fd, visit.wd)
    elif visit.fd >= 0:
        close(visit.fd)


cdef void step(Walk *walk, uint32_t node, uint32_t serial) noexcept nogil:
    """Bring a directory in line with the file system: arm and list it, or check that it is where the tree has it.

    Those in the same directory that are next on the stack go with it: they share the barrier.
    """
    cdef Visit visits[SIBLINGS]
    cdef Job job
    cdef int count = 0, limit = min(<int>SIBLINGS, walk.core.pace), parent_fd = -1, i, state
    cdef bint new = False
    job.node, job.serial = node, serial
    while True:
        state = visit_begin(walk, &job, &visits[0] if count else NULL, &visits[count])
        if state == ELSEWHERE:
            walk.stack_count += 1       # it stays where it was taken from
            break
        if state == LOOKED_AT and visit_look(walk, &visits[count]):
            new = new or visits[count].new
            parent_fd = visits[count].parent_fd
            count += 1
        if count == 0 or count >= limit or walk.stack_count == 0 or walk.error:
            break
        walk.stack_count -= 1
        job = walk.stack[walk.stack_count]
    if new:
        barrier(parent_fd)
    for i in range(count):
        visit_end(walk, &visits[i])


cdef void drain_stack(Walk *walk) noexcept nogil:
    cdef Job job
    while not walk.error and not load_int(&walk.core.stopping) and (walk.stack_count or take_later(walk)):
        walk.stack_count -= 1
        job = walk.stack[walk.stack_count]
        step(walk, job.node, job.serial)
    walk.stack_count = 0
    walk.later_count = 0


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
