# cython: language_level=3, boundscheck=False, wraparound=False
"""What the reader asks of the walker, what waits for a mark to come out of the queue, and what Python is to be told."""

from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset, strdup

from argusd._records cimport Buffer, buffer_add, buffer_free
from argusd.engine.core cimport (
    LIMBO_WAITS,
    LOOKED,
    NODE_QUEUED,
    RETRY_WAITS,
    Identity,
    Look,
    NoticeEntry,
    Retry,
    WdEntry,
    fence_if_needed,
    fence_place,
    monotonic_ns,
    name_hash,
    wd_find,
    wd_unused,
)
from argusd.engine.dispatch cimport job_queue, root_queue
from argusd.engine.queues cimport (
    Item,
    Key,
    Queue,
    index_add,
    index_find,
    index_remove,
    of_node,
    queue_leave,
    queue_push,
    queue_return,
)
from argusd.engine.tree cimport is_ahead, node_is, node_path
from argusd.engine.window cimport echoes_free, windows_free
from argusd.includes.linux cimport close, write
from argusd.includes.pthread cimport pthread_cond_destroy, pthread_cond_signal, pthread_mutex_destroy, swap_int


cdef enum:
    NOTICES_MAX = 1000          # that wait for Python; more are counted
    EAGER = 8                   # attempts that follow each other at once
    FEW = 256                   # retries that cost nothing to look at
    SWEEP_NS = 100 * 1000 * 1000    # between two looks at more


cdef void retry_push(Core *core, uint32_t node) noexcept nogil:
    """Look at ``node`` again when the reader has handled every event that is in the queue now.

    After some attempts each next one waits twice as long, up to about a minute.
    """
    cdef Retry *retry = <Retry *>calloc(1, sizeof(Retry))
    cdef int late = core.nodes[node].attempts - EAGER
    if retry == NULL:
        forget(core)
        return
    retry.node = node
    retry.serial = core.nodes[node].serial
    retry.attempt = core.nodes[node].attempts
    retry.due.owner = retry
    core.retry_count += 1
    if late > 0:
        late = min(late, RETRY_WAITS - 1)
        retry.due.until_ns = monotonic_ns() + (<int64_t>1000000 << late)
        queue_push(&core.retries_waiting[late], &retry.due)
        pthread_cond_signal(&core.work)
    else:
        retry.due.fence = fence_place(core)
        queue_push(&core.retries_due, &retry.due)


cdef void retry_free(Core *core, Retry *retry) noexcept nogil:
    queue_leave(&retry.due)
    core.retry_count -= 1
    free(retry)


cdef bint retry_stands(Core *core, const Retry *retry) noexcept nogil:
    """Is its directory still in the tree, and has nobody tried to reach it since?"""
    return node_is(core, retry.node, retry.serial) and retry.attempt == core.nodes[retry.node].attempts


cdef void sweep_retries(Core *core, Queue *queue) noexcept nogil:
    cdef Item *item = queue.first
    cdef Item *after
    while item != NULL:
        after = item.next
        if not retry_stands(core, <const Retry *>item.owner):
            retry_free(core, <Retry *>item.owner)
        item = after


cdef void drop_retries(Core *core) noexcept nogil:
    """Drop those that nothing is to be done for: they could be waiting for a minute. Many only now and then."""
    cdef int64_t now_ns = monotonic_ns()
    cdef int i
    if core.retry_count > FEW and now_ns - core.retries_swept_ns < SWEEP_NS:
        return
    core.retries_swept_ns = now_ns
    for i in range(RETRY_WAITS):
        sweep_retries(core, &core.retries_waiting[i])
    sweep_retries(core, &core.retries_due)


cdef Look *look_begin(Core *core, uint32_t node) noexcept nogil:
    """The walker is about to look at the place of ``node``; NULL when memory ran out."""
    cdef Look *look = <Look *>calloc(1, sizeof(Look))
    if look == NULL:
        return NULL
    look.node = node
    look.serial = core.nodes[node].serial
    look.parent = core.nodes[node].parent
    look.parent_serial = core.nodes[look.parent].serial
    look.name = name_hash(core, look.parent, core.nodes[node].name, core.nodes[node].name_size)
    look.mark = <uint32_t>fence_if_needed(core)
    look.still = True
    look.next = core.looks
    core.looks = look
    return look


cdef void look_found(Core *core, Look *look, int wd) noexcept nogil:
    """A directory is there, and watched from now on: what it tells is held until its place is known."""
    look.wd = wd
    wd_find(core, wd).mask |= LOOKED


cdef void look_disturb(Core *core, uint32_t node) noexcept nogil:
    """The event at hand names what stands at the place of ``node``: looks from before it do not tell what is there."""
    cdef Look *look = core.looks
    while look != NULL:
        if look.node == node and look.serial == core.nodes[node].serial and not is_ahead(core, look.mark):
            look.still = False
        look = look.next


cdef bint look_waits(Core *core, int wd) noexcept nogil:
    """Was this watch descriptor found by a look that the reader has not taken over yet?"""
    cdef Look *look = core.looks
    while look != NULL and look.wd != wd:
        look = look.next
    return look != NULL


cdef void look_free(Core *core, Look *look) noexcept nogil:
    """Free a look that is not in the list any more, and have its watch removed if nobody uses it."""
    cdef WdEntry *entry = wd_find(core, look.wd) if look.wd else NULL
    if entry != NULL and not look_waits(core, look.wd):
        entry.mask &= ~<uint32_t>LOOKED
        wd_unused(core, look.wd)
    buffer_free(&look.held)
    free(look)


cdef void look_end(Core *core, Look *look) noexcept nogil:
    """Nothing is left to be taken over."""
    cdef Look **link = &core.looks
    while link[0] != look:
        link = &link[0].next
    link[0] = look.next
    look_free(core, look)


cdef void proof_take(Core *core, uint32_t node, Identity *proven) noexcept nogil:
    """Which file is proven to stand where ``node`` is, if any; the proof is used up."""
    cdef Look **link = &core.looks
    cdef Look *look
    proven.valid = False
    while link[0] != NULL:
        look = link[0]
        if look.proven and look.node == node and look.serial == core.nodes[node].serial:
            if look.still:
                proven[0] = look.found
            link[0] = look.next
            look_free(core, look)
        else:
            link = &look.next


cdef void drop_stale(Core *core) noexcept nogil:
    """Drop what was kept for directories that are gone before the walker came to them."""
    cdef Look **link = &core.looks
    cdef Look *look
    cdef bint dropped = False
    drop_retries(core)
    while link[0] != NULL:
        look = link[0]
        if look.proven and not node_is(core, look.node, look.serial):
            link[0] = look.next
            look_free(core, look)
            dropped = True
        else:
            link = &look.next
    if dropped:
        fence_place(core)               # what waited for nothing but these goes on


cdef void place_waiting(Core *core, Queue *waiting, Queue *due, int64_t now_ns, uint64_t *fence,
                        int64_t *first_ns) noexcept nogil:
    """Let what has waited long enough go on behind a mark, one for all; note when the next will have."""
    cdef Item *item = waiting.first
    while item != NULL and item.until_ns <= now_ns:
        if fence[0] == 0:
            fence[0] = fence_place(core)
        item.fence = fence[0]
        queue_push(due, item)
        item = waiting.first
    if item != NULL and (first_ns[0] == 0 or item.until_ns < first_ns[0]):
        first_ns[0] = item.until_ns


cdef int64_t place_due(Core *core, int64_t now_ns) noexcept nogil:
    """Place the mark of what has waited long enough; returns when the next will have, or 0. With the lock held."""
    cdef int64_t first_ns = 0
    cdef uint64_t fence = 0
    cdef int i
    for i in range(RETRY_WAITS):
        place_waiting(core, &core.retries_waiting[i], &core.retries_due, now_ns, &fence, &first_ns)
    for i in range(LIMBO_WAITS):
        place_waiting(core, &core.limbo_waiting[i], &core.limbo_due, now_ns, &fence, &first_ns)
    return first_ns


cdef void job_push(Core *core, uint32_t node) noexcept nogil:
    """Have the walker bring ``node`` in line with the file system: arm and list it, or check that it is there."""
    if core.nodes[node].flags & NODE_QUEUED:
        return
    if not job_queue(core, core.nodes[node].root.subscription.place, node, core.nodes[node].serial):
        forget(core)
        return
    core.nodes[node].flags |= NODE_QUEUED


cdef void forget(Core *core) noexcept nogil:
    """There is no memory to remember what is to be done: all is looked at again, as if events were lost."""
    core.forgotten += 1
    core.spilled = True
    fence_place(core)               # the reader sees to it when it comes by


cdef void root_push(Core *core, Root *root) noexcept nogil:
    """Have the walker look again what a subject path stands for.

    Not during the first walk: where the walker came first, that walk would find all done already, and be over before
    the tree is watched.
    """
    root.called = root.arming
    if root.queued or root.arming:
        return
    root_queue(core, root)


cdef void root_armed(Core *core, Root *root) noexcept nogil:
    """The first walk is over, whatever came of it."""
    root.arming = False
    if root.called and not root.subscription.cancelled:
        root.unsure = root.top != 0 and (root.left or root.triggers.size > 0)
        root_push(core, root)


cdef void root_unsettle(Core *core, Root *root) noexcept nogil:
    """A look-up is done: what it means is known when the mark that is put into the queue now comes out of it."""
    root.looking = False
    root.fence = fence_place(core)
    if not root.unsettled:
        root.unsettled = True
        root.next_unsettled = core.unsettled
        core.unsettled = root


cdef void root_settled(Core *core, Root *root) noexcept nogil:
    cdef Root **link = &core.unsettled
    root.fence = 0
    if not root.unsettled:
        return
    while link[0] != root:
        link = &link[0].next_unsettled
    link[0] = root.next_unsettled
    root.unsettled = False


cdef void swap_push(Core *core, uint32_t node) noexcept nogil:
    """Have the walker find the links through ..data in a directory where that was swapped."""
    cdef uint32_t serial = core.nodes[node].serial
    cdef Key *key = index_find(&core.swaps_by_node, of_node(node, serial))
    cdef Swap *swap
    if key != NULL:
        (<Swap *>key.owner).times += 1
        return
    swap = <Swap *>calloc(1, sizeof(Swap))
    if swap == NULL or not index_add(&core.swaps_by_node, &swap.by_node, of_node(node, serial), swap):
        free(swap)
        forget(core)
        return
    swap.node = node
    swap.serial = serial
    swap.times = 1
    swap.due.owner = swap
    queue_push(&core.swaps, &swap.due)
    pthread_cond_signal(&core.work)


cdef void swap_due(Core *core, Swap *swap) noexcept nogil:
    """Its links are listed: they are reported behind a mark."""
    swap.due.fence = fence_place(core)
    queue_push(&core.swaps_due, &swap.due)


cdef void swap_free(Core *core, Swap *swap) noexcept nogil:
    cdef uint32_t i
    queue_leave(&swap.due)
    index_remove(&core.swaps_by_node, &swap.by_node)
    for i in range(swap.count):
        free(swap.names[i].bytes)
    free(swap.names)
    free(swap)


cdef void notice_push_path(Core *core, int kind, int subscription, int error, long number,
                           const char *path) noexcept nogil:
    """Leave a notice for Python, about ``path`` if that is not NULL."""
    cdef NoticeEntry *notice
    notice = <NoticeEntry *>calloc(1, sizeof(NoticeEntry)) if core.notice_count < NOTICES_MAX else NULL
    if notice == NULL:
        core.notices_dropped += 1
        tell_python(core)
        return
    notice.kind = kind
    notice.subscription = subscription
    notice.error = error
    notice.number = number
    if path != NULL:
        notice.path = strdup(path)
    if core.notices != NULL:
        core.notice_last.next = notice
    else:
        core.notices = notice
    core.notice_last = notice
    core.notice_count += 1
    tell_python(core)


cdef void notice_push(Core *core, int kind, int subscription, int error, long number, uint32_t node) noexcept nogil:
    """Leave a notice for Python, about where ``node`` is if that is not 0."""
    cdef Buffer path
    memset(&path, 0, sizeof(path))
    if node:
        node_path(core, node, &path)
        buffer_add(&path, b"", 1)
    notice_push_path(core, kind, subscription, error, number, path.data if path.size and not path.failed else NULL)
    buffer_free(&path)


cdef void tell_python(Core *core) noexcept nogil:
    """Wake the event loop, once until it has acknowledged."""
    cdef unsigned long long one = 1
    if swap_int(&core.told, 1) == 0:
        write(core.told_fd, &one, sizeof(one))


cdef void recent_add(Core *core, uint64_t hashed) noexcept nogil:
    cdef uint64_t *old
    cdef uint32_t i, at, old_capacity = core.recent_capacity
    if core.recent_count * 2 >= old_capacity:
        old = core.recent
        core.recent_capacity = old_capacity * 2 if old_capacity else 4096
        core.recent = <uint64_t *>calloc(core.recent_capacity, sizeof(uint64_t))
        if core.recent == NULL:
            core.recent = old
            core.recent_capacity = old_capacity
            return
        for i in range(old_capacity):
            if old[i]:
                at = <uint32_t>(old[i] >> 1) & (core.recent_capacity - 1)
                while core.recent[at]:
                    at = (at + 1) & (core.recent_capacity - 1)
                core.recent[at] = old[i]
        free(old)
    at = <uint32_t>(hashed >> 1) & (core.recent_capacity - 1)
    while core.recent[at] and core.recent[at] != hashed:
        at = (at + 1) & (core.recent_capacity - 1)
    if core.recent[at] == 0:
        core.recent[at] = hashed
        core.recent_count += 1


cdef uint64_t told_hash(Core *core, uint32_t node, const char *name, size_t size) noexcept nogil:
    """Of a name in a watched directory, for one subscription."""
    cdef uint32_t of = <uint32_t>core.nodes[node].root.subscription.number * <uint32_t>2654435761
    return name_hash(core, <uint32_t>core.nodes[node].wd ^ of, name, size) | 1


cdef bint recent_has(Core *core, uint32_t node, const char *name, size_t size) noexcept nogil:
    cdef uint64_t hashed = told_hash(core, node, name, size)
    cdef uint32_t at
    if core.recent_count == 0:
        return False
    at = <uint32_t>(hashed >> 1) & (core.recent_capacity - 1)
    while core.recent[at] and core.recent[at] != hashed:
        at = (at + 1) & (core.recent_capacity - 1)
    return core.recent[at] != 0


cdef void core_free(Core *core) noexcept nogil:
    """Give everything back. No thread may use the core any more; subscriptions are the engine's to free."""
    cdef uint32_t i
    cdef int kind
    cdef Look *look
    cdef NoticeEntry *notice
    windows_free(core)
    echoes_free(core)
    for kind in range(RETRY_WAITS):
        queue_return(&core.retries_due, &core.retries_waiting[kind])
    while core.retries_due.first != NULL:
        retry_free(core, <Retry *>core.retries_due.first.owner)
    queue_return(&core.swaps_due, &core.swaps)
    queue_return(&core.swaps_due, &core.swaps_aside)
    while core.swaps_due.first != NULL:
        swap_free(core, <Swap *>core.swaps_due.first.owner)
    for i in range(1, core.node_end):
        free(core.nodes[i].name)
    while core.looks != NULL:
        look = core.looks
        core.looks = look.next
        buffer_free(&look.held)
        free(look)
    while core.notices != NULL:
        notice = core.notices
        core.notices = notice.next
        free(notice.path)
        free(notice)
    free(core.anchors)
    free(core.recent)
    free(core.nodes)
    free(core.names)
    free(core.wds)
    free(core.removals)
    close(core.inotify_fd)
    close(core.fence_fds[0])
    close(core.fence_fds[1])
    close(core.told_fd)
    pthread_mutex_destroy(&core.data)
    pthread_mutex_destroy(&core.next)
    pthread_mutex_destroy(&core.low)
    pthread_cond_destroy(&core.work)
    pthread_cond_destroy(&core.begun)
