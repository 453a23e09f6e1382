# cython: language_level=3, boundscheck=False, wraparound=False
"""The walkers, one at a time: they bring the trees in line with the file system where the reader found a change.

The reader never asks a file system, which may not answer; this thread may wait. It pays for that with being behind:
whatever it finds is checked against the events that were in the queue at that time (windows, retries, look-ups that are
judged only when the mark behind them comes out of the queue).
"""

from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memset, strdup, strlen, strncmp
from posix.time cimport CLOCK_REALTIME, clock_gettime, timespec

from argusd.engine.core cimport (
    ANCHORED,
    LOOKED,
    NODE_RESCAN,
    RELEASED,
    REMOVING,
    Core,
    Job,
    Name,
    Root,
    Swap,
    WdEntry,
    Worker,
    core_lock,
    core_unlock,
    fence_place,
    monotonic_ns,
    wd_find,
    wd_forget,
    wd_gone,
)
from argusd.engine.directory cimport drain_stack, finish, step
from argusd.engine.dispatch cimport job_take, piece_begin, piece_end, pieces_check, root_take, swap_take
from argusd.engine.listing cimport expect_echoes, list_directory, listing_begin
from argusd.engine.mounts cimport mounts_check, mounts_due
from argusd.engine.starving cimport share_read, starved_due, starved_settle
from argusd.engine.subject cimport look_up
from argusd.engine.tree cimport node_is
from argusd.engine.walk cimport (
    ENTRIES,
    Walk,
    chain_push,
    node_open,
    walk_enter,
    walk_free,
    walk_init,
    walk_leave,
    walk_twin,
)
from argusd.engine.window cimport echoes_end, rescan_window
from argusd.engine.work cimport drop_stale, place_due, swap_due
from argusd.includes.linux cimport (
    DT_LNK,
    DT_UNKNOWN,
    O_CLOEXEC,
    O_DIRECTORY,
    O_NONBLOCK,
    O_RDONLY,
    PRIO_PROCESS,
    SYS_getdents64,
    SYS_gettid,
    close,
    dirent64,
    inotify_rm_watch,
    openat,
    readlinkat,
    setpriority,
    syscall,
    usleep,
)
from argusd.includes.pthread cimport (
    pthread_cond_signal,
    pthread_cond_timedwait,
    pthread_cond_wait,
    pthread_detach,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    pthread_t,
)
from argusd.threads cimport thread_begin
from argusd.twins cimport Twin, twin_run


cdef enum:
    PATH_SIZE = 4096
    STRETCH_NS = 50 * 1000 * 1000   # of work; then what is due by time has its turn, and watches are given back
    MARKING_US = 200
    SLICE = 4096                    # nodes that are marked with the lock held
    REMOVED_AT_ONCE = 64            # unused watches
    WALKERS_MAX = 256               # that hang; beyond that what is to be done waits
    CHECK_NS = 50 * 1000 * 1000     # between two looks at what goes on


cdef void do_job(Walk *walk, uint32_t node, uint32_t serial) noexcept nogil:
    """One directory that an event has named, and what turns out to be new below it."""
    step(walk, node, serial)
    drain_stack(walk)
    finish(walk, node, serial)
    walk_leave(walk)


cdef void do_root(Walk *walk, Worker *worker) noexcept nogil:
    """A subject path whose way has changed, or whose tree missed events."""
    cdef Core *core = walk.core
    cdef Root *root = worker.root
    cdef uint32_t top, serial
    cdef bint rescan
    look_up(walk, root)
    core_lock(core)
    root.looking = False            # also when the container has ended
    worker.repairs = root.rescan
    root.rescan = False             # events that are lost from here on need another repair
    core_unlock(core)
    mark_all(core)
    core_lock(core)
    top = root.next_top if root.next_top else root.top
    serial = core.nodes[top].serial
    rescan = top and core.nodes[top].flags & NODE_RESCAN    # perhaps from before: its path led elsewhere then
    core_unlock(core)
    if rescan and root.directory and walk.root == root:     # else the container has ended
        rescan_tree(walk, top, serial)
    walk_leave(walk)
    core_lock(core)
    if worker.repairs:
        worker.repairs = False
        core.repairing -= 1
        fence_place(core)           # the reader ends the repair when it comes by
    core_unlock(core)


cdef void mark_all(Core *core) noexcept nogil:
    """Once after an overflow: have every directory listed again, whatever becomes of it until a walker gets there."""
    cdef uint32_t node = 1, end = 1
    core_lock(core)
    while core.marking:                 # by another walker, which asks nobody meanwhile
        core_unlock(core)
        usleep(MARKING_US)
        core_lock(core)
    core.marking = core.unmarked
    core.unmarked = False
    if not core.marking:
        node = 0
    core_unlock(core)
    while node == end:                  # the reader's turn comes after each slice
        end = node + SLICE
        core_lock(core)
        while node < end and node < core.node_end:
            if core.nodes[node].root != NULL:
                core.nodes[node].flags |= NODE_RESCAN
            node += 1
        core.marking = node == end
        core_unlock(core)


cdef void rescan_tree(Walk *walk, uint32_t top, uint32_t serial) noexcept nogil:
    """List every directory of a tree that is marked so. Paced by the reader, so that this feeds no further overflow."""
    cdef Core *core = walk.core
    cdef int fd = node_open(walk, top, serial), wd = -1
    if fd < 0:
        return
    core_lock(core)
    if node_is(core, top, serial):
        wd = core.nodes[top].wd
        if wd >= 0:
            if core.repair:
                rescan_window(core, top)
            listing_begin(walk, top, serial, wd, -1, NULL)
    core_unlock(core)
    chain_push(walk, top, serial, fd)
    if wd >= 0:
        list_directory(walk, top, serial, fd, wd)
    drain_stack(walk)


cdef bint swap_add(Swap *swap, const char *name) noexcept nogil:
    cdef Name *grown
    if swap.count == swap.capacity:
        grown = <Name *>realloc(swap.names, (swap.capacity * 2 + 8) * sizeof(Name))
        if grown == NULL:
            return False
        swap.names = grown
        swap.capacity = swap.capacity * 2 + 8
    memset(&swap.names[swap.count], 0, sizeof(Name))
    swap.names[swap.count].bytes = strdup(name)
    if swap.names[swap.count].bytes == NULL:
        return False
    swap.names[swap.count].size = <unsigned short>strlen(name)
    swap.count += 1
    return True


cdef void find_links(Walk *walk, int reading, Swap *swap, const char *entries, long size) noexcept nogil:
    cdef char target[PATH_SIZE]
    cdef const dirent64 *entry
    cdef const char *end = entries + size
    cdef ssize_t length
    while entries < end:
        entry = <const dirent64 *>entries
        entries += entry.d_reclen
        if entry.d_type != DT_LNK and entry.d_type != DT_UNKNOWN:
            continue
        length = readlinkat(reading, entry.d_name, target, sizeof(target))
        if length > 7 and strncmp(target, b"..data/", 7) == 0:
            swap_add(swap, entry.d_name)


cdef void do_swap(Walk *walk, Swap *swap) noexcept nogil:
    """List the links that go through ..data; the reader reports them. The caller holds its subscription, if any."""
    cdef Core *core = walk.core
    cdef Root *root
    cdef uint32_t parent
    cdef long size
    cdef int fd = -1, reading = -1, reads = 0
    core_lock(core)
    root = core.nodes[swap.node].root if node_is(core, swap.node, swap.serial) else NULL
    core_unlock(core)
    if root != NULL and walk_enter(walk, root) == 0:
        fd = node_open(walk, swap.node, swap.serial)
    if fd >= 0:
        core_lock(core)
        if node_is(core, swap.node, swap.serial) and core.nodes[swap.node].wd >= 0:
            parent = core.nodes[swap.node].parent
            expect_echoes(walk, core.nodes[swap.node].wd, core.nodes[parent].wd if parent else -1,
                          core.nodes[swap.node].name)
        core_unlock(core)
        reading = openat(fd, b".", O_RDONLY | O_DIRECTORY | O_NONBLOCK | O_CLOEXEC)
    while reading >= 0:
        size = syscall(SYS_getdents64, reading, walk.entries, ENTRIES)
        reads += 1
        if size <= 0:
            break
        find_links(walk, reading, swap, walk.entries, size)
    if reading >= 0:
        close(reading)
    if fd >= 0:
        close(fd)
    walk_leave(walk)
    core_lock(core)
    swap_due(core, swap)
    echoes_end(core, walk, reads)
    core_unlock(core)


cdef bint remove_watches(Core *core) noexcept nogil:
    """Give some unused watches back to the kernel; a few at a time, since each leaves an event in the queue.

    Called and left with the lock held, but not while the kernel lets the inodes go: that may wait for a file system.
    """
    cdef WdEntry *entry
    cdef int wds[REMOVED_AT_ONCE]
    cdef int count = 0, tried = 0, wd, i
    while core.removal_count and tried < min(core.pace, REMOVED_AT_ONCE):
        core.removal_count -= 1
        tried += 1
        wd = core.removals[core.removal_count]
        entry = wd_find(core, wd)
        if entry == NULL:
            continue
        entry.mask &= ~<uint32_t>RELEASED
        if entry.first == 0 and not entry.mask & (ANCHORED | LOOKED | REMOVING):
            entry.mask |= REMOVING
            wds[count] = wd
            count += 1
    if count:
        pthread_mutex_unlock(&core.data)
        for i in range(count):
            inotify_rm_watch(core.inotify_fd, wds[i])
        pthread_mutex_lock(&core.data)
    for i in range(count):
        wd_forget(core, wds[i])
        wd_gone(core, wds[i])
    return core.removal_count > 0


cdef bint work_once(Walk *walk, Worker *worker) noexcept nogil:
    """Take and do one piece of work, called and left with the lock held. False when there was none.

    Two look-ups and two jobs are done for each swap, while there is enough of all.
    """
    cdef uint32_t turn = walk.core.turn
    walk.core.turn += 1
    if turn % 5 == 4 and next_swap(walk, worker):
        return True
    if turn & 1:
        return next_root(walk, worker) or next_job(walk, worker) or next_swap(walk, worker) or removal(walk, worker)
    return next_job(walk, worker) or next_root(walk, worker) or next_swap(walk, worker) or removal(walk, worker)


cdef bint next_root(Walk *walk, Worker *worker) noexcept nogil:
    cdef Root *root = root_take(walk.core)
    if root == NULL:
        return False
    root.looking = True
    piece_begin(worker, root)
    pthread_mutex_unlock(&walk.core.data)
    do_root(walk, worker)
    pthread_mutex_lock(&walk.core.data)
    piece_end(worker)
    return True


cdef bint next_job(Walk *walk, Worker *worker) noexcept nogil:
    cdef Job job
    cdef Root *root
    if not job_take(walk.core, &job, &root):
        return False
    if root != NULL:
        piece_begin(worker, root)
        pthread_mutex_unlock(&walk.core.data)
        do_job(walk, job.node, job.serial)
        pthread_mutex_lock(&walk.core.data)
        piece_end(worker)
    return True


cdef bint next_swap(Walk *walk, Worker *worker) noexcept nogil:
    cdef Root *root
    cdef Swap *swap = swap_take(walk.core, &root)
    if swap == NULL:
        return False
    piece_begin(worker, root)
    pthread_mutex_unlock(&walk.core.data)
    do_swap(walk, swap)
    pthread_mutex_lock(&walk.core.data)
    piece_end(worker)
    return True


cdef bint removal(Walk *walk, Worker *worker) noexcept nogil:
    cdef Core *core = walk.core
    cdef bint more
    if not core.removal_count or core.repair:       # a directory that a repair finds again keeps its watch descriptor
        return False
    piece_begin(worker, NULL)
    more = remove_watches(core)
    piece_end(worker)
    if more:
        pthread_mutex_unlock(&core.data)
        usleep(200)
        pthread_mutex_lock(&core.data)
    return True


cdef void wait_for_work(Core *core, int64_t until_ns) noexcept nogil:
    """Sleep until there is work or time is up, called and left with the lock held; for ever when nothing is watched."""
    cdef timespec when
    cdef long long now_ns = monotonic_ns(), due_ns, starved_ns, left
    drop_stale(core)
    due_ns = place_due(core, now_ns)
    starved_settle(core)
    starved_ns = starved_due(core, now_ns)
    if starved_ns and (due_ns == 0 or starved_ns < due_ns):
        due_ns = starved_ns
    if core.ready_first != NULL or core.roots.first != NULL:
        return
    if core.subscriptions == NULL and not due_ns:
        pthread_cond_wait(&core.work, &core.data)
        return
    if due_ns and due_ns < until_ns:
        until_ns = due_ns
    left = max(<long long>0, until_ns - now_ns)
    clock_gettime(CLOCK_REALTIME, &when)
    when.tv_sec += (when.tv_nsec + left) // 1000000000
    when.tv_nsec = (when.tv_nsec + left) % 1000000000
    pthread_cond_timedwait(&core.work, &core.data, &when)


cdef void *walker(void *argument) noexcept nogil:
    """The body of the thread of one walker."""
    cdef Worker *worker = <Worker *>argument
    cdef Core *core = worker.core
    cdef Worker **link = &core.workers
    cdef Twin twin
    walk_twin(&twin, core, work_on, worker)
    if twin_run(&twin) != 0:
        work_on(&twin, worker)          # no process can be made: better to walk at a risk than not at all
    core_lock(core)
    while link[0] != worker:
        link = &link[0].next
    link[0] = worker.next
    core.worker_count -= 1
    pthread_cond_signal(&core.begun)
    core_unlock(core)
    free(worker)
    return NULL


cdef void work_on(Twin *twin, void *argument) noexcept nogil:
    """The life of a walker: what the reader found changed, mounts, and watches that nobody uses any more."""
    cdef Worker *worker = <Worker *>argument
    cdef Core *core = worker.core
    cdef Walk walk
    cdef int64_t mounts_ns, begun_ns
    cdef uint32_t share
    cdef bint busy
    cdef int error = walk_init(&walk, core, twin)
    # The reader may wait for the lock while this thread has it: it must not lose the processor then. May fail.
    setpriority(PRIO_PROCESS, <unsigned int>syscall(SYS_gettid), -19)
    pthread_mutex_lock(&core.data)
    while not error and not core.stopping and not worker.hung:
        core.working += 1
        begun_ns = monotonic_ns()
        busy = True
        while busy and not core.stopping and not worker.hung and monotonic_ns() - begun_ns < STRETCH_NS:
            busy = work_once(&walk, worker)
            walk.error = 0
        core.working -= 1
        if core.stopping or worker.hung:
            break
        mounts_ns = mounts_due(core)
        if mounts_ns and monotonic_ns() >= mounts_ns:
            pthread_mutex_unlock(&core.data)
            mounts_check(&walk)
            share = share_read(core.share_percent)
            pthread_mutex_lock(&core.data)
            core.watch_share = share
        elif busy:
            drop_stale(core)
            place_due(core, monotonic_ns())
            starved_due(core, monotonic_ns())
            removal(&walk, worker)
        else:
            wait_for_work(core, mounts_ns)
    pthread_mutex_unlock(&core.data)
    walk_free(&walk)


cdef void *foreman(void *argument) noexcept nogil:
    """The life of the thread that sees to it that a walker takes work. It ends when no other one can take any more."""
    cdef Core *core = <Core *>argument
    cdef timespec when
    cdef int64_t due_ns
    cdef bint wanted
    pthread_mutex_lock(&core.data)
    while True:
        due_ns = pieces_check(core, &wanted)
        if core.stopping and wanted:    # those that are left hang
            break
        if wanted and core.worker_count < WALKERS_MAX:
            walker_begin(core)
        elif due_ns or wanted or core.stopping:
            clock_gettime(CLOCK_REALTIME, &when)
            when.tv_nsec += CHECK_NS
            when.tv_sec += when.tv_nsec // 1000000000
            when.tv_nsec %= 1000000000
            pthread_cond_timedwait(&core.begun, &core.data, &when)
        else:
            core.unattended = True
            pthread_cond_wait(&core.begun, &core.data)
    pthread_mutex_unlock(&core.data)
    return NULL


cdef void walker_begin(Core *core) noexcept nogil:
    """Called and left with the lock held, not without a pause where that fails."""
    cdef pthread_t thread
    cdef Worker *worker = <Worker *>calloc(1, sizeof(Worker))
    if worker != NULL:
        worker.core = core
        worker.next = core.workers
        core.workers = worker
        core.worker_count += 1
    pthread_mutex_unlock(&core.data)
    if worker == NULL:
        usleep(CHECK_NS // 1000)
    elif thread_begin(&thread, walker, worker, b"walker") != 0:
        usleep(CHECK_NS // 1000)
        core_lock(core)
        core.workers = worker.next      # only this thread adds to the list
        core.worker_count -= 1
        core_unlock(core)
        free(worker)
    else:
        pthread_detach(thread)
    pthread_mutex_lock(&core.data)
