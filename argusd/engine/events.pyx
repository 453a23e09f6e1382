# cython: language_level=3, boundscheck=False, wraparound=False
"""The reader thread: from the kernel's queue to lines and counts.

Facts about inotify that shape this file:

* Events of one instance come in the order in which they happened, for all its watches together.
* An identical event right behind the last one is merged into it by the kernel.
* When the queue is full, the kernel drops what comes and leaves one IN_Q_OVERFLOW. What was missed is then found by
  listing every directory again; files tell by their time of birth whether they are new.
* That time may be as coarse as CLOCK_REALTIME_COARSE, which is some milliseconds behind, or as fine as CLOCK_REALTIME:
  the kernel chooses. And a file gets it before its event is queued.
"""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset, strlen
from posix.time cimport CLOCK_REALTIME, clock_gettime, timespec

from argusd._output cimport SINKS_MAX
from argusd._records cimport buffer_free, stamp_set
from argusd.engine.core cimport (
    ANCHORED,
    LOOKED,
    NODE_DEPARTED,
    NODE_ENDING,
    NOISY,
    NOTICE_OVERFLOW,
    OVERFLOW_INDEX,
    Anchor,
    Limbo,
    Look,
    Place,
    Retry,
    Root,
    Subscription,
    Swap,
    WdEntry,
    Window,
    core_lock_first,
    core_unlock_first,
    fence_pass,
    fence_reset,
    has_place,
    monotonic_ns,
    wd_find,
    wd_forget,
    wd_gone,
)
from argusd.engine.dispatch cimport is_busy
from argusd.engine.limbo cimport HELD_MAX, hold, limbo_any, limbo_free
from argusd.engine.queues cimport Queue, queue_push, queue_return
from argusd.engine.report cimport CREATED_KEPT
from argusd.engine.anchors cimport anchor_first, anchors_lose
from argusd.engine.changes cimport end_node, expire, node_event, take_over, window_settle
from argusd.engine.paths cimport anchored, forget_held, judge
from argusd.engine.report cimport PATHS, Created, emit, flush_lines
from argusd.engine.tree cimport is_ahead, node_free_tree, node_is
from argusd.engine.window cimport echo_drop, echoes_expire
from argusd.engine.work cimport (
    job_push,
    look_free,
    notice_push,
    recent_add,
    retry_free,
    retry_stands,
    root_push,
    swap_free,
    tell_python,
)
from argusd.includes.linux cimport (
    IN_CREATE,
    IN_DELETE,
    IN_IGNORED,
    IN_MODIFY,
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
    setpriority,
    syscall,
    usleep,
)
from argusd.includes.pthread cimport add_u64, load_int, store_int


cdef int64_t SECOND_NS = 1000000000

cdef enum:
    EVENTS_SIZE = 1024 * 1024       # bytes read at once: the whole default queue of 16,384 short names
    BUSY = 16                       # events in one read from which on the next is put off, so that it brings more
    FEW = 2                         # so many in a read that was put off are enough to put off the next one as well
    NAP_US = 1000
    SWAPPED_MAX = 65536             # lines at once, for what was swapped again and again before it was listed
    WINDOWS_S = 2                   # after all has been listed: new directories may come without end
    REPAIR_WINDOWS_S = 60           # those whose listing does not come to an end
    CLOSE_NS = 500 * 1000           # reads that follow each other so closely bring FEW in the time of a nap
    BIRTH_NS = 100 * 1000 * 1000    # at most between a file's time of birth and its event


cdef void ignored(Reader *reader, WdEntry *entry, const inotify_event *event) noexcept nogil:
    """The kernel let a watch go: the inode was deleted, or its file system unmounted."""
    cdef Core *core = reader.core
    cdef uint32_t node, after, serial
    if entry.mask & ANCHORED:
        anchors_lose(core, event.wd)
        entry = wd_find(core, event.wd)
    node = entry.first
    after = node
    while after:                            # the list is in the nodes: first unhook all, then free
        entry.first = core.nodes[after].next_on_wd
        core.nodes[after].root.subscription.place.watches -= not has_place(
            core, entry.first, core.nodes[after].root)
        core.nodes[after].wd = -1
        after = entry.first
    wd_forget(core, event.wd)
    while node:
        after = core.nodes[node].next_on_wd
        serial = core.nodes[after].serial if after else 0
        if core.nodes[node].root.unsure and not core.nodes[node].flags & NODE_DEPARTED:
            core.nodes[node].flags |= NODE_ENDING
            hold(core, &core.nodes[node].root.held, node, event)
        else:
            end_node(core, node)
        node = after if after and node_is(core, after, serial) else 0


cdef void tell_swap(Reader *reader, Swap *swap) noexcept nogil:
    """A volume's ..data was swapped: what is reached through it is new."""
    cdef uint32_t i, _time
    if not node_is(reader.core, swap.node, swap.serial) or not swap.count:
        return
    for _time in range(min(swap.times, max(<uint32_t>1, SWAPPED_MAX // swap.count))):
        for i in range(swap.count):
            emit(reader, swap.node, IN_MODIFY, False, swap.names[i].bytes, swap.names[i].size)


cdef bint is_due(const Queue *queue, uint64_t passed) noexcept nogil:
    """True if the mark of the first in the queue has come out of the kernel's."""
    return queue.first != NULL and queue.first.fence <= passed


cdef void settle_retries(Core *core, uint64_t passed) noexcept nogil:
    cdef Retry *retry
    while is_due(&core.retries_due, passed):
        retry = <Retry *>core.retries_due.first.owner
        if retry_stands(core, retry):
            job_push(core, retry.node)
        retry_free(core, retry)


cdef void settle_limbo(Reader *reader, uint64_t passed) noexcept nogil:
    cdef Core *core = reader.core
    cdef Limbo *limbo
    while is_due(&core.limbo_due, passed):
        limbo = <Limbo *>core.limbo_due.first.owner
        if limbo.arrived or node_is(core, limbo.node, limbo.serial):
            expire(reader, limbo)
        else:
            limbo_free(core, limbo)


cdef void settle_windows(Reader *reader, uint64_t passed) noexcept nogil:
    """End windows in the order of their listings: parents before children."""
    cdef Core *core = reader.core
    cdef Window *window
    while is_due(&core.windows_due, passed):
        window = <Window *>core.windows_due.first.owner
        if core.nodes[window.node].root.unsure:
            queue_push(&core.windows_held, &window.due)
        else:
            window_settle(reader, window)


cdef void settle_looks(Reader *reader) noexcept nogil:
    """Take over, oldest first, what the walker found at the points in time that the reader has come to."""
    cdef Core *core = reader.core
    cdef Look *due = NULL
    cdef Look *look
    cdef Look **link = &core.looks
    while link[0] != NULL:
        look = link[0]
        if look.fence and look.fence <= core.fence_passed and not look.proven:
            link[0] = look.next
            look.next = due                 # the newest is first in the list, and so the last here
            due = look
        else:
            link = &look.next
    while due != NULL:
        look = due
        due = look.next
        if take_over(reader, look):
            look.proven = True
            look.next = core.looks
            core.looks = look
        else:
            look_free(core, look)


cdef void settle(Reader *reader) noexcept nogil:
    """A mark has come out of the queue: end what waited for it."""
    cdef Core *core = reader.core
    cdef uint64_t passed = core.fence_passed
    cdef Root *root = core.unsettled
    cdef Root *next_root
    cdef Swap *swap
    while root != NULL:
        next_root = root.next_unsettled
        if root.fence <= passed and not root.queued and not root.looking:   # else another look-up is to come
            judge(reader, root)
            queue_return(&core.windows_due, &core.windows_held)
        root = next_root
    while is_due(&core.swaps_due, passed):
        swap = <Swap *>core.swaps_due.first.owner
        tell_swap(reader, swap)
        swap_free(core, swap)
    settle_windows(reader, passed)
    echoes_expire(core, passed)
    settle_limbo(reader, passed)
    settle_looks(reader)
    settle_retries(core, passed)
    if core.repair and core.repairing == 0:
        if core.repaired_ns == 0:
            core.repaired_ns = monotonic_ns()
        if repair_is_over(core, monotonic_ns() - core.repaired_ns):
            end_repair(core)


cdef void drop_limbo(Core *core) noexcept nogil:
    """What was on the move when events were lost: the listings will tell where it is."""
    cdef Limbo *limbo = limbo_any(core)
    while limbo != NULL:
        if not limbo.arrived and node_is(core, limbo.node, limbo.serial):
            node_free_tree(core, limbo.node)
        limbo_free(core, limbo)
        limbo = limbo_any(core)


cdef void begin_repair(Reader *reader) noexcept nogil:
    """Have every tree listed again. What was born since the read before this one began, and not told, is new."""
    cdef Core *core = reader.core
    cdef Subscription *subscription = core.subscriptions
    cdef int i
    core.unmarked = True
    core.repaired_ns = 0
    if not core.repair:
        core.repair = True
        core.repair_since_ns = reader.last_ns - BIRTH_NS
        for i in range(CREATED_KEPT):
            if reader.created[i].ns >= core.repair_since_ns:
                recent_add(core, reader.created[i].hashed)
    while subscription != NULL:
        subscription.place.mounts_doubt = True          # what tells the end of a file system may be lost as well
        for i in range(subscription.root_count):
            if not (subscription.roots[i].rescan or subscription.roots[i].arming or is_busy(&subscription.roots[i])):
                subscription.roots[i].rescan = True
                core.repairing += 1
            subscription.roots[i].moved = True      # as far as we know
            subscription.roots[i].elsewhere = True
            if subscription.roots[i].held.size > HELD_MAX:
                forget_held(&subscription.roots[i])         # else all that comes next is lost as well
            root_push(core, &subscription.roots[i])
        subscription = subscription.next


cdef bint repair_is_over(const Core *core, int64_t since_ns) noexcept nogil:
    """Is nothing left for which it matters what was told before, since all was listed?"""
    return (core.windows.count == 0 or (core.repair_windows == 0 and since_ns > WINDOWS_S * SECOND_NS)
            or since_ns > REPAIR_WINDOWS_S * SECOND_NS)


cdef void end_repair(Core *core) noexcept nogil:
    core.repair = False
    core.repaired_ns = 0
    free(core.recent)
    core.recent = NULL
    core.recent_count = 0
    core.recent_capacity = 0


cdef void overflow(Reader *reader) noexcept nogil:
    """The kernel dropped events: say so in the log and in every watch's counts, and find out what was missed."""
    cdef Core *core = reader.core
    cdef Subscription *subscription = core.subscriptions
    reader.overflows += 1
    while subscription != NULL:
        if subscription.on and subscription.guard == NULL and subscription.counter.overflow != reader.overflows:
            subscription.counter.overflow = reader.overflows
            add_u64(&subscription.counter.counts[OVERFLOW_INDEX], 1)
        subscription = subscription.next
    notice_push(core, NOTICE_OVERFLOW, 0, 0, <long>reader.overflows, 0)
    reader.counted = True
    fence_reset(core)
    forget_looks(core)
    drop_limbo(core)
    begin_repair(reader)


cdef void look_hold(Core *core, const inotify_event *event) noexcept nogil:
    """It may come from a directory that the walker has just found, and whose place the reader does not know yet."""
    cdef Look *look = core.looks
    while look != NULL:
        if (look.wd == event.wd and look.still and not look.proven and node_is(core, look.node, look.serial)
                and not is_ahead(core, look.mark)):
            hold(core, &look.held, look.node, event)
        look = look.next


cdef void forget_looks(Core *core) noexcept nogil:
    """Events were lost that may have named what was being looked at."""
    cdef Look *look = core.looks
    while look != NULL:
        look.still = False
        buffer_free(&look.held)
        look = look.next


cdef void doubt_mounts(Core *core, const WdEntry *entry) noexcept nogil:
    """A file system is gone: what is mounted where it was looks the same in a list of mounts."""
    cdef const Anchor *anchor
    cdef Place *place
    cdef uint32_t node
    if entry == NULL or not (entry.first or entry.mask & ANCHORED):     # nobody's any more: it may be anybody's
        place = core.places
        while place != NULL:
            place.mounts_doubt = True
            place = place.next
        return
    node = entry.first
    anchor = anchor_first(core, entry.wd) if entry.mask & ANCHORED else NULL
    while anchor != NULL:
        if anchor.wd == entry.wd:
            anchor.root.subscription.place.mounts_doubt = True
        anchor = anchor.next_on_wd
    while node:
        core.nodes[node].root.subscription.place.mounts_doubt = True
        node = core.nodes[node].next_on_wd


cdef void handle(Reader *reader, const inotify_event *event) noexcept nogil:
    cdef Core *core = reader.core
    cdef WdEntry *entry
    cdef uint32_t node, after, serial
    if event.wd == core.fence_wd and not event.mask & IN_Q_OVERFLOW:
        if not event.mask & IN_IGNORED:
            fence_pass(core)
            settle(reader)
        return
    reader.handled += 1
    reader.number += 1
    if event.mask & IN_Q_OVERFLOW:          # with -1 for a watch descriptor
        overflow(reader)
        return
    entry = wd_find(core, event.wd)
    if event.mask & IN_IGNORED:
        wd_gone(core, event.wd)
    if event.mask & IN_UNMOUNT:
        doubt_mounts(core, entry)
    if entry == NULL:                       # nobody's any more
        return
    if entry.mask & ANCHORED and event.len and event.mask & (IN_CREATE | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO):
        anchored(reader, event, strlen(event.name))
    if event.mask & IN_IGNORED:
        ignored(reader, entry, event)
        return
    if core.echoes.count and event.mask & NOISY and echo_drop(
            core, event.wd, event.mask, <const char *>event.name if event.len else NULL):
        return
    if entry.mask & LOOKED:
        look_hold(core, event)
    node = entry.first
    while node:
        after = core.nodes[node].next_on_wd
        serial = core.nodes[after].serial if after else 0
        node_event(reader, node, event)
        node = after if after and node_is(core, after, serial) else 0


cdef int64_t now_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_REALTIME, &now)
    return <int64_t>now.tv_sec * 1000000000 + now.tv_nsec


cdef void handle_batch(Reader *reader, size_t size, int *count) noexcept nogil:
    cdef const inotify_event *event
    cdef size_t at = 0
    cdef int i
    count[0] = 0
    reader.batch_ns = now_ns()
    stamp_set(&reader.stamp, reader.batch_ns, reader.thread_id, b"_inotify.pyx:1")
    reader.counted = False
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
    reader.last_ns = reader.read_ns
    if reader.counted and load_int(&reader.wanted):
        tell_python(reader.core)


cdef bint is_nap_due(const Reader *reader, int count, unsigned long long told_before, int64_t since_ns,
                     bint napped) noexcept nogil:
    """Does so much come that a read brings several events if it is put off? Our own marks do not count."""
    if count >= BUSY:
        return True
    if reader.reported == told_before:
        return False
    return count >= FEW if napped else since_ns < CLOSE_NS


cdef void *reader_main(void *argument) noexcept nogil:
    """The life of the reader thread: it never takes the GIL, and never waits for output or a file system."""
    cdef Reader *reader = <Reader *>argument
    cdef pollfd sources[2]
    cdef ssize_t size
    cdef int count = 0
    cdef int64_t end = -1, since_ns
    cdef unsigned long long told_before
    cdef bint napped = False
    reader.thread_id = syscall(SYS_gettid)
    setpriority(PRIO_PROCESS, <unsigned int>reader.thread_id, -20)  # the kernel's queue waits for nobody; may fail
    sources[0].fd, sources[0].events = reader.core.inotify_fd, POLLIN
    sources[1].fd, sources[1].events = reader.stop_fd, POLLIN
    while True:
        if end < 0 and load_int(&reader.core.stopping):     # there may never be a moment in which nothing comes
            end = monotonic_ns() + <int64_t>reader.drain_ms * 1000000
        store_int(&reader.core.reading, 1)
        reader.read_ns = now_ns()
        size = read(reader.core.inotify_fd, reader.events, EVENTS_SIZE)
        if size > 0:
            since_ns, told_before = reader.read_ns - reader.last_ns, reader.reported
            handle_batch(reader, <size_t>size, &count)
            if end >= 0 and monotonic_ns() > end:
                break
            napped = end < 0 and is_nap_due(reader, count, told_before, since_ns, napped)
            if napped:
                usleep(NAP_US)
            continue
        if size < 0 and errno != EAGAIN and errno != EINTR:
            break
        if end >= 0:                        # asked to stop, and the queue is empty
            break
        store_int(&reader.core.reading, 0)
        poll(sources, 2, -1)
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
