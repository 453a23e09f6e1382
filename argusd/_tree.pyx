# cython: language_level=3, boundscheck=False, wraparound=False
"""What is watched, in memory: trees of directories and the kernel's watch descriptors.

Nothing here looks at a file system. The reader changes the trees as events tell, the walks change them as listings
tell, both under Core's lock, which is never held while a file system is asked.
"""

from libc.errno cimport ENOMEM, errno
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset, strlen

from argusd._records cimport buffer_free, buffer_room
from argusd.includes.linux cimport (
    EFD_CLOEXEC,
    EFD_NONBLOCK,
    IN_ACCESS,
    IN_ATTRIB,
    IN_CLOEXEC,
    IN_CLOSE_NOWRITE,
    IN_CREATE,
    IN_MODIFY,
    IN_MOVE_SELF,
    IN_MOVED_FROM,
    IN_MOVED_TO,
    IN_NONBLOCK,
    IN_OPEN,
    MFD_CLOEXEC,
    close,
    eventfd,
    fchmod,
    ftruncate,
    inotify_add_watch,
    inotify_init1,
    inotify_rm_watch,
    memfd_create,
    write,
)
from argusd.includes.pthread cimport (
    pthread_cond_destroy,
    pthread_cond_init,
    pthread_cond_signal,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    swap_int,
)

cdef extern from "<sys/random.h>" nogil:
    ssize_t getrandom(void *buffer, size_t size, unsigned int flags)

NOISY = IN_OPEN | IN_ACCESS | IN_CLOSE_NOWRITE
STRUCTURE = IN_CREATE | IN_MOVED_FROM | IN_MOVED_TO | IN_MOVE_SELF

cdef enum:
    NOTICES_MAX = 1000          # that wait for Python; more are not told


# ---- the lock: two classes, so that walks that take it again and again cannot starve the reader

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


cdef int core_init(Core *core) noexcept nogil:
    """Returns 0 or an errno; EMFILE when the kernel gives this user no more inotify instances."""
    memset(core, 0, sizeof(Core))
    core.fence_fd = -1
    core.told_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
    if core.told_fd < 0:
        return errno
    core.inotify_fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC)
    if core.inotify_fd < 0:
        return errno
    if not fence_make(core):
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
    return 0


cdef void core_free(Core *core) noexcept nogil:
    """Give everything back. No thread may use the core any more; subscriptions are the engine's to free."""
    cdef uint32_t i
    cdef Window *window
    cdef Echo *echo
    cdef Limbo *limbo
    cdef Retry *retry
    cdef NoticeEntry *notice
    for i in range(1, core.node_end):
        free(core.nodes[i].name)
    while core.windows != NULL:
        window = core.windows
        core.windows = window.next
        for i in range(window.count):
            free(window.names[i].bytes)
        free(window.names)
        free(window.index)
        free(window)
    while core.echoes != NULL:
        echo = core.echoes
        core.echoes = echo.next
        free(echo.name)
        free(echo)
    while core.limbo != NULL:
        limbo = core.limbo
        core.limbo = limbo.next
        buffer_free(&limbo.deferred)
        free(limbo)
    while core.retries != NULL:
        retry = core.retries
        core.retries = retry.next
        free(retry)
    while core.notices != NULL:
        notice = core.notices
        core.notices = notice.next
        free(notice.path)
        free(notice)
    while core.swaps != NULL:
        swap_free(core, core.swaps)
    free(core.anchors)
    free(core.recent)
    free(core.nodes)
    free(core.names)
    free(core.wds)
    free(core.jobs)
    free(core.removals)
    close(core.inotify_fd)
    close(core.fence_fd)
    close(core.told_fd)
    pthread_mutex_destroy(&core.data)
    pthread_mutex_destroy(&core.next)
    pthread_mutex_destroy(&core.low)
    pthread_cond_destroy(&core.work)


# ---- names

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


cdef inline uint32_t node_hash(Core *core, uint32_t node) noexcept nogil:
    return <uint32_t>name_hash(core, core.nodes[node].parent, core.nodes[node].name, core.nodes[node].name_size)


cdef bint names_grow(Core *core) noexcept nogil:
    cdef uint32_t *old = core.names
    cdef uint32_t old_capacity = core.names_capacity, i, at
    core.names = <uint32_t *>calloc(old_capacity * 2, sizeof(uint32_t))
    if core.names == NULL:
        core.names = old
        return False
    core.names_capacity = old_capacity * 2
    for i in range(old_capacity):
        if old[i]:
            at = node_hash(core, old[i]) & (core.names_capacity - 1)
            while core.names[at]:
                at = (at + 1) & (core.names_capacity - 1)
            core.names[at] = old[i]
    free(old)
    return True


cdef bint node_index(Core *core, uint32_t node) noexcept nogil:
    cdef uint32_t at
    if (core.names_count + 1) * 4 > core.names_capacity * 3 and not names_grow(core):
        return False
    at = node_hash(core, node) & (core.names_capacity - 1)
    while core.names[at]:
        at = (at + 1) & (core.names_capacity - 1)
    core.names[at] = node
    core.names_count += 1
    core.nodes[node].flags |= NODE_INDEXED
    return True


cdef void node_unindex(Core *core, uint32_t node) noexcept nogil:
    cdef uint32_t last = core.names_capacity - 1
    cdef uint32_t at, follow, home
    if not core.nodes[node].flags & NODE_INDEXED:
        return
    core.nodes[node].flags &= <unsigned short>~NODE_INDEXED
    core.names_count -= 1
    at = node_hash(core, node) & last
    while core.names[at] != node:
        at = (at + 1) & last
    follow = at
    while True:                 # close the gap, so that no tombstones are needed
        core.names[at] = 0
        while True:
            follow = (follow + 1) & last
            if core.names[follow] == 0:
                return
            home = node_hash(core, core.names[follow]) & last
            if ((follow - home) & last) >= ((follow - at) & last):
                break
        core.names[at] = core.names[follow]
        at = follow


cdef uint32_t node_find(Core *core, uint32_t parent, const char *name, size_t size) noexcept nogil:
    cdef uint32_t at = <uint32_t>name_hash(core, parent, name, size) & (core.names_capacity - 1)
    cdef uint32_t node
    while core.names[at]:
        node = core.names[at]
        if (core.nodes[node].parent == parent and core.nodes[node].name_size == size
                and memcmp(core.nodes[node].name, name, size) == 0):
            return node
        at = (at + 1) & (core.names_capacity - 1)
    return 0


# ---- nodes

cdef void node_link(Core *core, uint32_t node, uint32_t parent) noexcept nogil:
    cdef uint32_t first
    core.nodes[node].parent = parent
    core.nodes[node].prev_sibling = 0
    core.nodes[node].next_sibling = 0
    if parent:
        first = core.nodes[parent].first_child
        core.nodes[node].next_sibling = first
        if first:
            core.nodes[first].prev_sibling = node
        core.nodes[parent].first_child = node


cdef void node_unlink(Core *core, uint32_t node) noexcept nogil:
    cdef Node *it = &core.nodes[node]
    if it.prev_sibling:
        core.nodes[it.prev_sibling].next_sibling = it.next_sibling
    elif it.parent:
        core.nodes[it.parent].first_child = it.next_sibling
    if it.next_sibling:
        core.nodes[it.next_sibling].prev_sibling = it.prev_sibling


cdef bint set_name(Node *node, const char *name, size_t size) noexcept nogil:
    cdef char *copy = <char *>malloc(size + 1)
    if copy == NULL:
        return False
    memcpy(copy, name, size)
    copy[size] = 0
    free(node.name)
    node.name = copy
    node.name_size = <unsigned char>size
    return True


cdef uint32_t node_new(Core *core, uint32_t parent, Root *root, const char *name, size_t size) noexcept nogil:
    """A new node below ``parent``, or a top without a name when that is 0. Returns 0 when memory ran out."""
    cdef uint32_t node = core.node_free, serial
    cdef Node *grown
    if node:
        core.node_free = core.nodes[node].next_sibling
    else:
        if core.node_end == core.node_capacity:
            grown = <Node *>realloc(core.nodes, <size_t>core.node_capacity * 2 * sizeof(Node))
            if grown == NULL:
                return 0
            core.nodes = grown
            core.node_capacity *= 2
        node = core.node_end
        core.node_end += 1
        core.nodes[node].serial = 0
    serial = core.nodes[node].serial + 1
    memset(&core.nodes[node], 0, sizeof(Node))
    core.nodes[node].serial = serial
    core.nodes[node].wd = -1
    core.nodes[node].root = root
    core.node_count += 1
    node_link(core, node, parent)
    if parent and not (set_name(&core.nodes[node], name, size) and node_index(core, node)):
        node_free_tree(core, node)
        return 0
    return node


cdef bint node_is(Core *core, uint32_t node, uint32_t serial) noexcept nogil:
    return core.nodes[node].serial == serial and core.nodes[node].root != NULL


cdef void node_move(Core *core, uint32_t node, uint32_t parent, const char *name, size_t size) noexcept nogil:
    """Give a node, with all that is below it, another place and name."""
    node_unindex(core, node)
    node_unlink(core, node)
    node_link(core, node, parent)
    core.nodes[node].flags |= NODE_MOVED
    core.generation += 1
    if not (set_name(&core.nodes[node], name, size) and node_index(core, node)):
        node_free_tree(core, node)


cdef void node_free_one(Core *core, uint32_t node) noexcept nogil:
    cdef Node *it = &core.nodes[node]
    node_unindex(core, node)
    node_unlink(core, node)
    wd_detach(core, node)
    if it.root.top == node:
        it.root.top = 0
    if it.root.next_top == node:
        it.root.next_top = 0
    free(it.name)
    it.name = NULL
    it.root = NULL              # node_is() says no from here on
    it.flags = 0
    it.next_sibling = core.node_free
    core.node_free = node
    core.node_count -= 1


cdef void node_free_tree(Core *core, uint32_t node) noexcept nogil:
    cdef uint32_t at = node, parent
    core.generation += 1
    while True:
        while core.nodes[at].first_child:
            at = core.nodes[at].first_child
        parent = core.nodes[at].parent
        node_free_one(core, at)
        if at == node:
            return
        at = parent


cdef uint32_t node_next(Core *core, uint32_t top, uint32_t node) noexcept nogil:
    """The node after ``node`` in a walk, parents first, through the tree below ``top``; 0 at the end."""
    if core.nodes[node].first_child:
        return core.nodes[node].first_child
    while node != top:
        if core.nodes[node].next_sibling:
            return core.nodes[node].next_sibling
        node = core.nodes[node].parent
    return 0


cdef uint32_t node_depth(Core *core, uint32_t node) noexcept nogil:
    """1 for the subject path itself."""
    cdef uint32_t depth = 0
    while node:
        depth += 1
        node = core.nodes[node].parent
    return depth


cdef bint node_below(Core *core, uint32_t node, uint32_t ancestor) noexcept nogil:
    while node and node != ancestor:
        node = core.nodes[node].parent
    return node != 0


cdef void node_path(Core *core, uint32_t node, Buffer *out) noexcept nogil:
    """Append the node's path as the container sees it, not sanitized."""
    cdef Root *root = core.nodes[node].root
    cdef size_t size = root.path_size
    cdef uint32_t at = node
    cdef char *end
    while core.nodes[at].parent:
        size += <size_t>core.nodes[at].name_size + 1
        at = core.nodes[at].parent
    if root.path_size == 1 and size > 1:
        size -= 1               # the root directory brings its own slash
    if not buffer_room(out, size):
        return
    end = out.data + out.size + size
    at = node
    while core.nodes[at].parent:
        end -= core.nodes[at].name_size
        memcpy(end, core.nodes[at].name, core.nodes[at].name_size)
        end -= 1
        end[0] = c'/'
        at = core.nodes[at].parent
    memcpy(out.data + out.size, root.path, root.path_size)
    out.size += size


# ---- watch descriptors

cdef inline uint32_t wd_home(Core *core, int wd) noexcept nogil:
    return (<uint32_t>wd * <uint32_t>2654435769) & (core.wds_capacity - 1)


cdef WdEntry *wd_find(Core *core, int wd) noexcept nogil:
    cdef uint32_t at = wd_home(core, wd)
    while core.wds[at].wd:
        if core.wds[at].wd == wd:
            return &core.wds[at]
        at = (at + 1) & (core.wds_capacity - 1)
    return NULL


cdef bint wds_grow(Core *core) noexcept nogil:
    cdef WdEntry *old = core.wds
    cdef uint32_t old_capacity = core.wds_capacity, i, at
    core.wds = <WdEntry *>calloc(<size_t>old_capacity * 2, sizeof(WdEntry))
    if core.wds == NULL:
        core.wds = old
        return False
    core.wds_capacity = old_capacity * 2
    for i in range(old_capacity):
        if old[i].wd:
            at = wd_home(core, old[i].wd)
            while core.wds[at].wd:
                at = (at + 1) & (core.wds_capacity - 1)
            core.wds[at] = old[i]
    free(old)
    return True


cdef WdEntry *wd_attach(Core *core, int wd, uint32_t mask, uint32_t node) noexcept nogil:
    """Note that the kernel watches ``wd`` for ``mask`` more, and (unless node is 0) for whom. NULL: out of memory."""
    cdef WdEntry *entry = wd_find(core, wd)
    cdef uint32_t at
    if entry == NULL:
        if (core.wds_count + 1) * 4 > core.wds_capacity * 3 and not wds_grow(core):
            return NULL
        at = wd_home(core, wd)
        while core.wds[at].wd:
            at = (at + 1) & (core.wds_capacity - 1)
        entry = &core.wds[at]
        entry.wd = wd
        entry.mask = 0
        entry.first = 0
        core.wds_count += 1
    if mask & NOISY and not entry.mask & NOISY:
        core.noisy += 1
    entry.mask |= mask
    if node:
        core.nodes[node].wd = wd
        core.nodes[node].next_on_wd = entry.first
        entry.first = node
    return entry


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
    if entry.first == 0 and not entry.mask & ANCHORED:
        wd_release(core, wd)


cdef void wd_release(Core *core, int wd) noexcept nogil:
    """Have the walker remove a watch that nobody uses."""
    cdef int *grown
    if core.removal_count == core.removal_capacity:
        grown = <int *>realloc(core.removals, <size_t>(core.removal_capacity * 2 + 256) * sizeof(int))
        if grown == NULL:       # no memory to remember it: remove it at once
            wd_forget(core, wd)
            inotify_rm_watch(core.inotify_fd, wd)
            return
        core.removals = grown
        core.removal_capacity = core.removal_capacity * 2 + 256
    core.removals[core.removal_count] = wd
    core.removal_count += 1
    pthread_cond_signal(&core.work)


cdef void wd_forget(Core *core, int wd) noexcept nogil:
    """Drop the entry of a watch descriptor that the kernel has let go. Its nodes must have been detached."""
    cdef uint32_t last = core.wds_capacity - 1
    cdef uint32_t at = wd_home(core, wd), follow, home
    while core.wds[at].wd != wd:
        if core.wds[at].wd == 0:
            return
        at = (at + 1) & last
    if core.wds[at].mask & NOISY:
        core.noisy -= 1
    core.wds_count -= 1
    follow = at
    while True:
        core.wds[at].wd = 0
        while True:
            follow = (follow + 1) & last
            if core.wds[follow].wd == 0:
                return
            home = wd_home(core, core.wds[follow].wd)
            if ((follow - home) & last) >= ((follow - at) & last):
                break
        core.wds[at] = core.wds[follow]
        at = follow


# ---- marks in the queue, work, notices

cdef uint64_t fence_place(Core *core) noexcept nogil:
    """Put a mark into the kernel's queue, behind every event that came before it; returns its number.

    A change of mode makes an IN_ATTRIB and a change of size an IN_MODIFY on our own memfd. They alternate, because the
    kernel merges an event into an identical last one.
    """
    core.fence_placed += 1
    if core.fence_placed & 1:
        fchmod(core.fence_fd, 0o600 if core.fence_placed & 2 else 0o400)
    else:
        ftruncate(core.fence_fd, 1 if core.fence_placed & 2 else 0)
    return core.fence_placed


cdef bint fence_make(Core *core) noexcept nogil:
    cdef char path[40]
    core.fence_fd = memfd_create(b"argusd-fence", MFD_CLOEXEC)
    if core.fence_fd < 0:
        return False
    snprintf(path, sizeof(path), b"/proc/self/fd/%d", core.fence_fd)
    core.fence_wd = inotify_add_watch(core.inotify_fd, path, IN_ATTRIB | IN_MODIFY)
    return core.fence_wd >= 0


cdef void fence_reset(Core *core) noexcept nogil:
    """After an overflow some marks are lost: all that were placed count as passed, and new ones get a new file."""
    core.fence_passed = core.fence_placed
    inotify_rm_watch(core.inotify_fd, core.fence_wd)
    close(core.fence_fd)
    fence_make(core)


cdef void retry_push(Core *core, uint32_t node, bint gone) noexcept nogil:
    """Look at ``node`` again when the reader has handled every event that is in the queue now."""
    cdef Retry *retry
    if core.nodes[node].attempts == ATTEMPTS_MAX:
        if core.nodes[node].wd < 0:
            node_free_tree(core, node)
        return
    retry = <Retry *>calloc(1, sizeof(Retry))
    if retry == NULL:
        return
    core.nodes[node].attempts += 1
    retry.node = node
    retry.serial = core.nodes[node].serial
    retry.gone = gone
    retry.fence = fence_place(core)
    retry.next = core.retries
    core.retries = retry


cdef void job_push(Core *core, uint32_t node) noexcept nogil:
    """Have the walker bring ``node`` in line with the file system: arm and list it, or check that it is where we think."""
    cdef Job *grown
    cdef uint32_t i
    if core.nodes[node].flags & NODE_QUEUED:
        return
    if core.job_count == core.job_capacity:
        grown = <Job *>malloc((core.job_capacity * 2 + 64) * sizeof(Job))
        if grown == NULL:
            return
        for i in range(core.job_count):
            grown[i] = core.jobs[(core.job_first + i) % core.job_capacity]
        free(core.jobs)
        core.jobs = grown
        core.job_first = 0
        core.job_capacity = core.job_capacity * 2 + 64
    i = (core.job_first + core.job_count) % core.job_capacity
    core.jobs[i].node = node
    core.jobs[i].serial = core.nodes[node].serial
    core.job_count += 1
    core.nodes[node].flags |= NODE_QUEUED
    pthread_cond_signal(&core.work)


cdef void root_push(Core *core, Root *root) noexcept nogil:
    """Have the walker look again what a subject path stands for."""
    if root.queued:
        return
    root.queued = True
    root.next_queued = NULL
    if core.root_last != NULL:
        core.root_last.next_queued = root
    else:
        core.root_first = root
    core.root_last = root
    pthread_cond_signal(&core.work)


cdef void root_unqueue(Core *core, Root *root) noexcept nogil:
    cdef Root **link = &core.root_first
    cdef Root *before = NULL
    if not root.queued:
        return
    while link[0] != root:
        before = link[0]
        link = &before.next_queued
    link[0] = root.next_queued
    if core.root_last == root:
        core.root_last = before
    root.queued = False


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


cdef void notice_push(Core *core, int kind, int subscription, int error, long number, uint32_t node) noexcept nogil:
    cdef NoticeEntry *notice
    cdef NoticeEntry **end = &core.notices
    cdef Buffer path
    if core.notice_count >= NOTICES_MAX:
        return
    notice = <NoticeEntry *>calloc(1, sizeof(NoticeEntry))
    if notice == NULL:
        return
    notice.kind = kind
    notice.subscription = subscription
    notice.error = error
    notice.number = number
    if node:
        memset(&path, 0, sizeof(path))
        node_path(core, node, &path)
        if buffer_room(&path, 1):
            path.data[path.size] = 0
            notice.path = path.data
        else:
            buffer_free(&path)
    while end[0] != NULL:
        end = &end[0].next
    end[0] = notice
    core.notice_count += 1
    tell_python(core)


cdef void tell_python(Core *core) noexcept nogil:
    """Wake the event loop, once until it has acknowledged."""
    cdef unsigned long long one = 1
    if swap_int(&core.told, 1) == 0:
        write(core.told_fd, &one, sizeof(one))


cdef bint is_ignored(const Subscription *subscription, const char *name, size_t size) noexcept nogil:
    cdef int i
    for i in range(subscription.ignored_count):
        if strlen(subscription.ignored[i]) == size and memcmp(subscription.ignored[i], name, size) == 0:
            return True
    return False


# ---- anchors of subject paths

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
    anchors_drop(core, root, True)
    if root.top:
        node_free_tree(core, root.top)
    if root.next_top:
        node_free_tree(core, root.next_top)
    if root.rescan:
        root.rescan = False
        core.repairing -= 1


# ---- what was reported as created lately, while an overflow is repaired

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


cdef bint recent_has(Core *core, int wd, const char *name, size_t size) noexcept nogil:
    cdef uint64_t hashed = name_hash(core, <uint32_t>wd, name, size) | 1
    cdef uint32_t at
    if core.recent_count == 0:
        return False
    at = <uint32_t>(hashed >> 1) & (core.recent_capacity - 1)
    while core.recent[at] and core.recent[at] != hashed:
        at = (at + 1) & (core.recent_capacity - 1)
    return core.recent[at] != 0


cdef void swap_push(Core *core, uint32_t node) noexcept nogil:
    """Have the walker find the links through ..data in a directory where that was swapped."""
    cdef Swap *swap = <Swap *>calloc(1, sizeof(Swap))
    cdef Swap **end = &core.swaps
    if swap == NULL:
        return
    swap.node = node
    swap.serial = core.nodes[node].serial
    while end[0] != NULL:
        end = &end[0].next
    end[0] = swap
    pthread_cond_signal(&core.work)


cdef void swap_free(Core *core, Swap *swap) noexcept nogil:
    cdef Swap **link = &core.swaps
    cdef uint32_t i
    while link[0] != swap:
        link = &link[0].next
    link[0] = swap.next
    for i in range(swap.count):
        free(swap.names[i].bytes)
    free(swap.names)
    free(swap)
