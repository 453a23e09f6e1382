# cython: language_level=3, boundscheck=False, wraparound=False
"""Which walker does what: containers take turns, and what hangs holds up only what needs the same.

One walker takes all work, one piece after the other. When a piece takes long, another walker takes over, because the
file system that the first one asks may never answer. The subject path for which that one works is *busy* then: what
else is to be done for it is put aside until the piece has ended, however long that takes. So no two walkers are ever in
one tree. The whole container is put aside when several of its pieces hang.

Everything here is called with the lock held.
"""

from libc.stdlib cimport free, malloc

from argusd.engine.core cimport RootList, fence_place, monotonic_ns
from argusd.engine.queues cimport index_remove, queue_leave, queue_push, queue_return
from argusd.engine.tree cimport node_is
from argusd.includes.pthread cimport pthread_cond_broadcast, pthread_cond_signal


cdef enum:
    LONG_NS = 100 * 1000 * 1000     # of one piece; then another walker takes over
    HUNG_EACH = 4                   # pieces of one container


cdef bint is_busy(const Root *root) noexcept nogil:
    """True if what is to be done for a subject path must wait for what hangs."""
    return root.busy or root.subscription.place.hung >= HUNG_EACH


# ---- jobs

cdef bint ring_push(Ring *ring, uint32_t node, uint32_t serial) noexcept nogil:
    """Append a node; False when memory ran out."""
    cdef Job *grown
    cdef uint32_t i
    if ring.count == ring.capacity:
        grown = <Job *>malloc((<size_t>ring.capacity * 2 + 64) * sizeof(Job))
        if grown == NULL:
            return False
        for i in range(ring.count):
            grown[i] = ring.jobs[(ring.first + i) % ring.capacity]
        free(ring.jobs)
        ring.jobs = grown
        ring.first = 0
        ring.capacity = ring.capacity * 2 + 64
    i = (ring.first + ring.count) % ring.capacity
    ring.jobs[i].node = node
    ring.jobs[i].serial = serial
    ring.count += 1
    return True


cdef Job ring_pop(Ring *ring) noexcept nogil:
    """Take the first of a ring that is not empty."""
    cdef Job job = ring.jobs[ring.first]
    ring.first = (ring.first + 1) % ring.capacity
    ring.count -= 1
    if ring.count == 0:                 # containers are many, and most have nothing to be done
        free(ring.jobs)
        ring.jobs = NULL
        ring.capacity = 0
    return job


cdef void make_ready(Core *core, Place *place) noexcept nogil:
    """Send a container to the end of the row of those with jobs that may be done."""
    if place.ready or place.jobs.count == 0 or place.hung >= HUNG_EACH:
        return
    place.ready = True
    place.next_ready = NULL
    if core.ready_last != NULL:
        core.ready_last.next_ready = place
    else:
        core.ready_first = place
    core.ready_last = place


cdef void make_unready(Core *core, Place *place) noexcept nogil:
    cdef Place **link = &core.ready_first
    cdef Place *before = NULL
    if not place.ready:
        return
    while link[0] != place:
        before = link[0]
        link = &before.next_ready
    link[0] = place.next_ready
    if core.ready_last == place:
        core.ready_last = before
    place.ready = False


cdef bint job_queue(Core *core, Place *place, uint32_t node, uint32_t serial) noexcept nogil:
    """False when memory ran out."""
    if not ring_push(&place.jobs, node, serial):
        return False
    core.job_count += 1
    make_ready(core, place)
    pthread_cond_signal(&core.work)
    return True


cdef bint job_take(Core *core, Job *job, Root **root) noexcept nogil:
    """The next job of the next container, and the subject path of its tree, NULL when it has left that."""
    cdef Place *place
    while core.ready_first != NULL:
        place = core.ready_first
        make_unready(core, place)
        job[0] = ring_pop(&place.jobs)
        make_ready(core, place)
        root[0] = core.nodes[job.node].root if node_is(core, job.node, job.serial) else NULL
        if root[0] != NULL and is_busy(root[0]) and ring_push(&place.aside, job.node, job.serial):
            continue
        core.job_count -= 1
        return True
    return False


cdef void jobs_drop(Core *core, Place *place) noexcept nogil:
    """The container is watched no more."""
    make_unready(core, place)
    core.job_count -= place.jobs.count + place.aside.count
    free(place.jobs.jobs)
    free(place.aside.jobs)


# ---- look-ups of subject paths

cdef void list_append(RootList *roots, Root *root) noexcept nogil:
    root.next_queued = NULL
    if roots.last != NULL:
        roots.last.next_queued = root
    else:
        roots.first = root
    roots.last = root


cdef bint list_remove(RootList *roots, Root *root) noexcept nogil:
    cdef Root **link = &roots.first
    cdef Root *before = NULL
    while link[0] != NULL and link[0] != root:
        before = link[0]
        link = &before.next_queued
    if link[0] == NULL:
        return False
    link[0] = root.next_queued
    if roots.last == root:
        roots.last = before
    return True


cdef void root_queue(Core *core, Root *root) noexcept nogil:
    root.queued = True
    list_append(&core.roots, root)
    pthread_cond_signal(&core.work)


cdef void root_unqueue(Core *core, Root *root) noexcept nogil:
    if root.queued and not list_remove(&core.roots, root):
        list_remove(&core.roots_aside, root)
    root.queued = False


cdef void give_up_repair(Core *core, Root *root) noexcept nogil:
    """After an overflow: the others are not to wait. The nodes stay marked, so they are listed all the same, later."""
    if root.rescan:
        root.rescan = False
        core.repairing -= 1
        fence_place(core)


cdef Root *root_take(Core *core) noexcept nogil:
    """The next look-up to be done, or NULL."""
    cdef Root *root = core.roots.first
    while root != NULL:
        list_remove(&core.roots, root)
        if not is_busy(root):
            root.queued = False
            return root
        give_up_repair(core, root)
        list_append(&core.roots_aside, root)
        root = core.roots.first
    return NULL


# ---- swapped volumes

cdef Swap *swap_take(Core *core, Root **root) noexcept nogil:
    """The next one, or NULL; from here on another swap of the same directory is one more."""
    cdef Swap *swap
    while core.swaps.first != NULL:
        swap = <Swap *>core.swaps.first.owner
        queue_leave(&swap.due)
        root[0] = core.nodes[swap.node].root if node_is(core, swap.node, swap.serial) else NULL
        if root[0] == NULL or not is_busy(root[0]):
            index_remove(&core.swaps_by_node, &swap.by_node)
            return swap
        queue_push(&core.swaps_aside, &swap.due)
    return NULL


# ---- pieces

cdef void piece_begin(Worker *worker, Root *root) noexcept nogil:
    """``root``, unless it is NULL, and its subscription stay until ``piece_end``."""
    worker.begun_ns = monotonic_ns()
    worker.root = root
    if root != NULL:
        root.subscription.users += 1
    if worker.core.unattended:
        worker.core.unattended = False
        pthread_cond_signal(&worker.core.begun)


cdef void piece_end(Worker *worker) noexcept nogil:
    """When another walker has taken over, the caller is one too many now."""
    cdef Root *root = worker.root
    worker.root = NULL
    worker.begun_ns = 0
    if root == NULL:
        return
    if worker.hung:
        root.busy = False
        root.subscription.place.hung -= 1
        take_back(worker.core, root.subscription.place)
    root.subscription.users -= 1


cdef void take_back(Core *core, Place *place) noexcept nogil:
    """Have all done that was put aside; what must wait still is put aside again when its turn comes."""
    cdef Job job
    cdef Root *root
    while place.aside.count:
        job = ring_pop(&place.aside)
        if not ring_push(&place.jobs, job.node, job.serial):
            core.job_count -= 1
    make_ready(core, place)
    while core.roots_aside.first != NULL:
        root = core.roots_aside.first
        list_remove(&core.roots_aside, root)
        list_append(&core.roots, root)
    queue_return(&core.swaps, &core.swaps_aside)
    pthread_cond_broadcast(&core.work)


cdef void is_hung(Worker *worker) noexcept nogil:
    """From here on another walker does the rest."""
    cdef Core *core = worker.core
    worker.hung = True
    if worker.root == NULL:
        return
    worker.root.busy = True
    worker.root.subscription.place.hung += 1
    give_up_repair(core, worker.root)
    if worker.repairs:
        worker.repairs = False
        core.repairing -= 1
        fence_place(core)
    if worker.root.subscription.place.hung >= HUNG_EACH:
        make_unready(core, worker.root.subscription.place)


cdef int64_t pieces_check(Core *core, bint *wanted) noexcept nogil:
    """When to check again, 0 when nothing goes on; ``wanted``: no walker is left that takes further work."""
    cdef Worker *worker = core.workers
    cdef int64_t now_ns = monotonic_ns(), due_ns = 0
    wanted[0] = True
    while worker != NULL:
        if worker.begun_ns and not worker.hung and now_ns - worker.begun_ns >= LONG_NS:
            is_hung(worker)
        if not worker.hung:
            wanted[0] = False
            if worker.begun_ns:
                due_ns = now_ns + LONG_NS
        worker = worker.next
    return due_ns
