# cython: language_level=3, boundscheck=False, wraparound=False
"""The state of the engine: its lock, the kernel's watch descriptors, and marks in the kernel's queue.

Everything that the reader and the walks share is in ``Core`` (core.pxd), under one lock that is never held while a file
system is asked, nor while Python runs.
"""

from libc.errno cimport ENOMEM, errno
from libc.stdint cimport int32_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from argusd.engine.instance cimport instance_make
from argusd.includes.linux cimport (
    EFD_CLOEXEC,
    EFD_NONBLOCK,
    FIONREAD,
    IN_ACCESS,
    IN_ATTRIB,
    IN_CLOSE_NOWRITE,
    IN_CREATE,
    IN_MODIFY,
    IN_MOVED_FROM,
    IN_MOVED_TO,
    IN_MOVE_SELF,
    IN_OPEN,
    MFD_CLOEXEC,
    M_MMAP_THRESHOLD,
    eventfd,
    fchmod,
    ftruncate,
    getrandom,
    inotify_add_watch,
    inotify_rm_watch,
    ioctl,
    mallopt,
    memfd_create,
)
from argusd.includes.pthread cimport (
    load_int,
    pthread_cond_init,
    pthread_cond_signal,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    store_u64,
)


cdef enum:
    PACE_MAX = 64               # of a queue of the default length
    SWEEP = 1 << 30             # marks from one sweep to the next
    LARGE_BLOCK = 128 * 1024    # bytes that are worth a mapping of their own, as the C library has it at first


NOISY = IN_OPEN | IN_ACCESS | IN_CLOSE_NOWRITE


STRUCTURE = IN_CREATE | IN_MOVED_FROM | IN_MOVED_TO | IN_MOVE_SELF


cdef void core_lock(Core *core) noexcept nogil:
    pthread_mutex_lock(&core.low)
    pthread_mutex_lock(&core.next)
    pthread_mutex_lock(&core.data)
    pthread_mutex_unlock(&core.next)


cdef void core_unlock(Core *core) noexcept nogil:
    pthread_mutex_unlock(&core.data)
    pthread_mutex_unlock(&core.low)


cdef void core_lock_first(Core *core) noexcept nogil:
    pthread_mutex_lock(&core.next)
    pthread_mutex_lock(&core.data)
    pthread_mutex_unlock(&core.next)


cdef void core_unlock_first(Core *core) noexcept nogil:
    pthread_mutex_unlock(&core.data)


cdef int queue_pace(long length) noexcept nogil:
    """A part of the length of the instance's queue."""
    return <int>max(<long>1, min(<long>PACE_MAX, length // 16)) if length > 0 else PACE_MAX


cdef int core_init(Core *core, int sysctl_fd, long queued_events) noexcept nogil:
    """Returns 0 or an errno; EMFILE when the kernel gives this user no more inotify instances.

    ``sysctl_fd`` is of fs.inotify.max_queued_events, or -1; the queue is to hold so many events if that is not 0.
    """
    cdef int i
    memset(core, 0, sizeof(Core))
    # Else the C library raises this size with each large block that is freed, and keeps outgrown tables for ever.
    mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)
    core.fence_fds[0] = core.fence_fds[1] = core.fence_wd = -1
    core.told_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
    if core.told_fd < 0:
        return errno
    core.inotify_fd = instance_make(sysctl_fd, queued_events, &core.queue_length, &core.queue_error)
    if core.inotify_fd < 0:
        return -core.inotify_fd
    core.pace = queue_pace(core.queue_length)
    for i in range(2):
        core.fence_fds[i] = memfd_create(b"argusd-fence", MFD_CLOEXEC)
        if core.fence_fds[i] < 0:
            return errno
    if not fence_watch(core):
        return errno
    core.node_capacity = 1024
    core.names_capacity = 2048
    core.wds_capacity = 2048
    core.nodes = <Node *>calloc(core.node_capacity, sizeof(Node))
    core.names = <uint32_t *>calloc(core.names_capacity, sizeof(uint32_t))
    core.wds = <WdEntry *>calloc(core.wds_capacity, sizeof(WdEntry))
    core.anchors = <Anchor **>calloc(ANCHOR_BUCKETS, sizeof(Anchor *))
    core.node_end = 1           # index 0 means none
    if core.anchors == NULL or core.nodes == NULL or core.names == NULL or core.wds == NULL:
        return ENOMEM
    if getrandom(core.key, sizeof(core.key), 0) != sizeof(core.key):
        return errno
    pthread_mutex_init(&core.data, NULL)
    pthread_mutex_init(&core.next, NULL)
    pthread_mutex_init(&core.low, NULL)
    pthread_cond_init(&core.work, NULL)
    pthread_cond_init(&core.begun, NULL)
    return 0


cdef int64_t monotonic_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t>now.tv_sec * 1000000000 + now.tv_nsec


cdef uint64_t fence_place(Core *core) noexcept nogil:
    """Put a mark into the kernel's queue, behind every event that came before it; returns its number.

    A change of mode makes an IN_ATTRIB and a change of size an IN_MODIFY on our own memfd. They alternate, because the
    kernel merges an event into an identical last one.
    """
    core.fence_placed += 1
    if core.fence_wd < 0 and fence_watch(core):
        core.fence_first = core.fence_placed
    if core.fence_placed & 1:
        fchmod(core.fence_fds[core.fence_at], 0o600 if core.fence_placed & 2 else 0o400)
    else:
        ftruncate(core.fence_fds[core.fence_at], 1 if core.fence_placed & 2 else 0)
    return core.fence_placed


cdef uint64_t fence_if_needed(Core *core) noexcept nogil:
    """A mark before what comes now, or 0 when every event from before has been handled already. With the lock held."""
    cdef int waiting = 0
    # FIONREAD takes half the time of poll(2). It adds up what is in the queue: next to nothing when nobody reads it.
    # What the reader takes before that is at hand afterwards, for it waits for the lock.
    if (load_int(&core.reading) or ioctl(core.inotify_fd, FIONREAD, &waiting) != 0 or waiting
            or load_int(&core.reading)):
        return fence_place(core)
    return 0


cdef bint fence_watch(Core *core) noexcept nogil:
    """Watch the file for marks. False, with errno, when that cannot be done now; it is tried again for each mark."""
    cdef char path[40]
    snprintf(path, sizeof(path), b"/proc/self/fd/%d", core.fence_fds[core.fence_at])
    core.fence_wd = inotify_add_watch(core.inotify_fd, path, IN_ATTRIB | IN_MODIFY)
    return core.fence_wd >= 0


cdef void fence_reset(Core *core) noexcept nogil:
    """After an overflow some marks are lost: all have passed when the first one on the other file has.

    Not before: events that came after some of them are still to come as well. The kernel gives the new watch another
    number than that file had before. It comes before the old one goes: others may be waiting for every watch that is
    given back. Both files are there from the start, so that every walk has them under the same numbers.
    """
    cdef int old_wd = core.fence_wd
    core.fence_at ^= 1
    fence_watch(core)
    if old_wd >= 0:
        inotify_rm_watch(core.inotify_fd, old_wd)
    core.fence_first = fence_place(core)


cdef void fence_pass(Core *core) noexcept nogil:
    """The next mark has come out of the queue."""
    core.fence_passed = max(core.fence_passed + 1, core.fence_first)
    core.event_passed = core.fence_passed
    if core.fence_passed >= core.fence_sweep:
        marks_sweep(core)


cdef void marks_sweep(Core *core) noexcept nogil:
    """Forget which marks have passed, before what is kept of their numbers turns over."""
    cdef Anchor *anchor
    cdef uint32_t i
    for i in range(1, core.node_end):
        if <int32_t>(core.nodes[i].mark - <uint32_t>core.fence_passed) <= 0:
            core.nodes[i].mark = 0
        if <int32_t>(core.nodes[i].listed - <uint32_t>core.fence_passed) <= 0:
            core.nodes[i].listed = 0
    for i in range(ANCHOR_BUCKETS):
        anchor = core.anchors[i]
        while anchor != NULL:
            if <int32_t>(anchor.mark - <uint32_t>core.fence_passed) <= 0:
                anchor.mark = 0
            anchor = anchor.next_on_wd
    core.fence_sweep = core.fence_passed + SWEEP


cdef inline uint64_t mix(uint64_t value) noexcept nogil:
    value ^= value >> 32
    value *= <uint64_t>0xD6E8FEB86659FD93ULL
    value ^= value >> 32
    value *= <uint64_t>0xD6E8FEB86659FD93ULL
    return value ^ (value >> 32)


cdef uint64_t name_hash(Core *core, uint32_t parent, const char *name, size_t size) noexcept nogil:
    cdef uint64_t state = core.key[0] ^ (<uint64_t>parent << 8) ^ size, word
    while size >= 8:
        memcpy(&word, name, 8)
        state = mix(state ^ word) + core.key[1]
        name += 8
        size -= 8
    word = 0
    memcpy(&word, name, size)
    return mix(state ^ word)


cdef inline uint32_t wd_home(Core *core, int wd) noexcept nogil:
    return place_in(core.wds_capacity, <uint32_t>wd * <uint32_t>2654435769)


cdef WdEntry *wd_find(Core *core, int wd) noexcept nogil:
    cdef uint32_t at = wd_home(core, wd)
    while core.wds[at].wd:
        if core.wds[at].wd == wd:
            return &core.wds[at]
        at = place_after(core.wds_capacity, at)
    return NULL


cdef bint wds_grow(Core *core) noexcept nogil:
    cdef WdEntry *old = core.wds
    cdef uint32_t old_capacity = core.wds_capacity, i, at
    core.wds_capacity = place_more(old_capacity)
    core.wds = <WdEntry *>calloc(core.wds_capacity, sizeof(WdEntry))
    if core.wds == NULL:
        core.wds, core.wds_capacity = old, old_capacity
        return False
    for i in range(old_capacity):
        if old[i].wd:
            at = wd_home(core, old[i].wd)
            while core.wds[at].wd:
                at = place_after(core.wds_capacity, at)
            core.wds[at] = old[i]
    free(old)
    return True


cdef WdEntry *wd_attach(Core *core, int wd, uint32_t mask, uint32_t node) noexcept nogil:
    """Note that the kernel watches ``wd`` for ``mask`` more, and (unless node is 0) for whom. NULL: out of memory."""
    cdef WdEntry *entry = wd_find(core, wd)
    cdef uint32_t at
    if entry == NULL:
        if <uint64_t>(core.wds_count + 1) * 5 > <uint64_t>core.wds_capacity * 4 and not wds_grow(core):
            return NULL
        at = wd_home(core, wd)
        while core.wds[at].wd:
            at = place_after(core.wds_capacity, at)
        entry = &core.wds[at]
        entry.wd = wd
        entry.mask = 0
        entry.first = 0
        core.wds_count += 1
    if mask & NOISY and not entry.mask & NOISY:
        core.noisy += 1
    entry.mask |= mask
    if node:
        core.nodes[node].root.subscription.place.watches += not has_place(core, entry.first, core.nodes[node].root)
        core.nodes[node].wd = wd
        core.nodes[node].next_on_wd = entry.first
        entry.first = node
    return entry


cdef bint has_place(Core *core, uint32_t first, const Root *root) noexcept nogil:
    """True if one of the nodes of a watch descriptor belongs to the root's container."""
    while first and core.nodes[first].root.subscription.place != root.subscription.place:
        first = core.nodes[first].next_on_wd
    return first != 0


cdef void wd_detach(Core *core, uint32_t node) noexcept nogil:
    """Take a node off its watch descriptor; the walker removes a kernel watch that nobody uses any more.

    Not here, because every removal puts an IN_IGNORED into the queue: a large tree's would overflow it.
    """
    cdef WdEntry *entry
    cdef uint32_t *link
    cdef int wd = core.nodes[node].wd
    if wd < 0:
        return
    core.nodes[node].wd = -1
    entry = wd_find(core, wd)
    if entry == NULL:
        return
    link = &entry.first
    while link[0] != node:
        link = &core.nodes[link[0]].next_on_wd
    link[0] = core.nodes[node].next_on_wd
    core.nodes[node].root.subscription.place.watches -= not has_place(core, entry.first, core.nodes[node].root)
    wd_unused(core, wd)


cdef void wd_release(Core *core, int wd) noexcept nogil:
    """Have the walker remove a watch that nobody uses."""
    cdef int *grown
    if core.removal_count == core.removal_capacity:
        grown = <int *>realloc(core.removals, <size_t>(core.removal_capacity * 2 + 256) * sizeof(int))
        if grown == NULL:       # no memory to remember it: it stays, unused, until its directory goes
            return
        core.removals = grown
        core.removal_capacity = core.removal_capacity * 2 + 256
    core.removals[core.removal_count] = wd
    core.removal_count += 1
    pthread_cond_signal(&core.work)


cdef void wd_unused(Core *core, int wd) noexcept nogil:
    """Have a watch removed if nobody uses it."""
    cdef WdEntry *entry = wd_find(core, wd)
    if entry != NULL and entry.first == 0 and not entry.mask & (ANCHORED | LOOKED | RELEASED):
        entry.mask |= RELEASED
        wd_release(core, wd)


cdef void wd_gone(Core *core, int wd) noexcept nogil:
    """Note that the kernel has let a watch go."""
    core.gone_wds[core.gone % GONE] = wd
    store_u64(&core.gone, core.gone + 1)


cdef bint wd_stands(Core *core, int wd, unsigned long long since) noexcept nogil:
    """True if a watch that was asked for when ``since`` had gone is still there. With the lock held.

    A watch is asked for without the lock, because a file system may keep whoever asks waiting. By the time that the
    lock is held the directory may have been deleted, or the watch may have been another one's that was removed.
    """
    cdef const WdEntry *entry = wd_find(core, wd)
    if entry != NULL and entry.mask & REMOVING:
        return False
    if core.gone - since > GONE:
        return False
    while since < core.gone:
        if core.gone_wds[since % GONE] == wd:
            return False
        since += 1
    return True


cdef void wd_stray(Core *core, int wd, uint32_t mask) noexcept nogil:
    """A watch was asked for that turned out not to be wanted: have it removed, unless others use it."""
    wd_attach(core, wd, mask, 0)
    wd_unused(core, wd)


cdef void wd_forget(Core *core, int wd) noexcept nogil:
    """Drop the entry of a watch descriptor that the kernel has let go. Its nodes must have been detached."""
    cdef uint32_t capacity = core.wds_capacity
    cdef uint32_t at = wd_home(core, wd), follow, home
    while core.wds[at].wd != wd:
        if core.wds[at].wd == 0:
            return
        at = place_after(capacity, at)
    if core.wds[at].mask & NOISY:
        core.noisy -= 1
    core.wds_count -= 1
    follow = at
    while True:
        core.wds[at].wd = 0
        while True:
            follow = place_after(capacity, follow)
            if core.wds[follow].wd == 0:
                return
            home = wd_home(core, core.wds[follow].wd)
            if places_between(capacity, home, follow) >= places_between(capacity, at, follow):
                break
        core.wds[at] = core.wds[follow]
        at = follow
