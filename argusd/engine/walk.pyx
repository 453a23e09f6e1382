# cython: language_level=3, boundscheck=False, wraparound=False
"""Looking into containers: opening their paths, listing directories, arming watches.

Facts about path lookup that shape this file:

* A container's files are reached through /proc/PID/root with openat2(2) and RESOLVE_IN_ROOT, so that neither an
  absolute symbolic link nor ``..`` leads out of its root. Below a subject path every step is one name, opened from its
  parent's descriptor without following links.
* A path says where a directory was, not which one it is. inotify_add_watch(2) tells: for an inode that is watched
  already it returns the same watch descriptor. So every directory that is reached by path, and not from the descriptor
  of its parent, is checked that way before it is used.
* An O_PATH descriptor causes no events, reading a directory does; see _window.pyx.
* Any descriptor inside a container keeps its mounts busy. All are closed at the end of each walk, and the working
  directory, which makes inotify_add_watch cheap, is put back.
"""

from libc.errno cimport ELOOP, ENOENT, ENOMEM, ENOSPC, ENOTDIR, ESRCH, ESTALE, errno
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset, strlen

from argusd._records cimport buffer_add, buffer_free, buffer_room
from argusd.engine.core cimport (
    ANCHORED,
    DEPTH_MAX,
    NODE_CREATED,
    NODE_DISPLACED,
    NODE_DOUBT,
    NODE_FIRST,
    NODE_LIMBO,
    NODE_MOVED,
    NODE_ORPHAN,
    NODE_QUEUED,
    NODE_QUIET,
    NODE_RELIST,
    NOISY,
    NOTICE_DEPTH,
    NOTICE_LIMIT,
    STRUCTURE,
    Echo,
    Identity,
    WdEntry,
    Window,
    core_lock,
    core_unlock,
    fence_if_needed,
    fence_place,
    wd_attach,
    wd_detach,
    wd_find,
)
from argusd.engine.opening cimport add_watch, below, identify, lookup, place_open, same_file
from argusd.engine.tree cimport (
    is_ignored,
    node_below,
    node_depth,
    node_find,
    node_free_tree,
    node_is,
    node_move,
    node_new,
    node_next,
)
from argusd.engine.window cimport echo_expect, window_add, window_find, window_name, window_open
from argusd.engine.work cimport job_push, notice_push, retry_push
from argusd.includes.linux cimport (
    AT_SYMLINK_NOFOLLOW,
    CLONE_FS,
    DT_DIR,
    DT_UNKNOWN,
    IN_DELETE,
    IN_DELETE_SELF,
    IN_MODIFY,
    IN_MOVED_TO,
    IN_MOVE_SELF,
    O_CLOEXEC,
    O_DIRECTORY,
    O_NONBLOCK,
    O_PATH,
    O_RDONLY,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    STATX_BTIME,
    STATX_TYPE,
    S_ISDIR,
    SYS_getdents64,
    chdir,
    close,
    dirent64,
    fstatat,
    inotify_rm_watch,
    openat,
    stat_t,
    statx,
    statx_t,
    syscall,
    unshare,
)
from argusd.includes.pthread cimport load_int


cdef enum:
    CHUNK = 3000                    # bytes of a relative path looked up at once; the kernel takes 4095
    OLD_FILE = 200                  # in place of a DT_* of getdents64(2), by mark_old()
    OLD_DIRECTORY = 201


cdef int walk_init(Walk *walk, Core *core) noexcept nogil:
    """Prepare the calling thread for walks: it gets a working directory of its own."""
    memset(walk, 0, sizeof(Walk))
    walk.core = core
    walk.place_fd = -1
    if unshare(CLONE_FS) != 0:
        return errno
    walk.entries = <char *>malloc(ENTRIES)
    return 0 if walk.entries != NULL else ENOMEM


cdef void chain_cut(Walk *walk, int count) noexcept nogil:
    while walk.chain_count > count:
        walk.chain_count -= 1
        close(walk.chain_fd[walk.chain_count])


cdef void chain_push(Walk *walk, uint32_t node, uint32_t serial, int fd) noexcept nogil:
    cdef int i
    if walk.chain_count == CHAIN:
        close(walk.chain_fd[0])
        walk.chain_count -= 1
        for i in range(walk.chain_count):
            walk.chain_node[i] = walk.chain_node[i + 1]
            walk.chain_serial[i] = walk.chain_serial[i + 1]
            walk.chain_fd[i] = walk.chain_fd[i + 1]
    walk.chain_node[walk.chain_count] = node
    walk.chain_serial[walk.chain_count] = serial
    walk.chain_fd[walk.chain_count] = fd
    walk.chain_count += 1


cdef int chain_find(Walk *walk, uint32_t node, uint32_t serial) noexcept nogil:
    """The open descriptor of a node, closing what was opened after it; -1 when it is not open."""
    cdef int i
    for i in range(walk.chain_count - 1, -1, -1):
        if walk.chain_node[i] == node and walk.chain_serial[i] == serial:
            chain_cut(walk, i + 1)
            return walk.chain_fd[i]
    return -1


cdef void walk_leave(Walk *walk) noexcept nogil:
    """Close all that is inside a container."""
    chain_cut(walk, 0)
    if walk.place_fd >= 0:
        close(walk.place_fd)
        walk.place_fd = -1
    walk.root = NULL
    chdir(b"/")


cdef void walk_free(Walk *walk) noexcept nogil:
    walk_leave(walk)
    free(walk.stack)
    free(walk.entries)
    buffer_free(&walk.path)
    buffer_free(&walk.top_path)
    buffer_free(&walk.mounts)


cdef int walk_enter(Walk *walk, Root *root) noexcept nogil:
    """Turn to the tree of ``root``; 0 or an errno."""
    cdef int fd
    if walk.root == root:
        return 0
    walk_leave(walk)
    fd = place_open(root.subscription.place.pid, root.subscription.place.pidfd)
    if fd < 0:
        return -fd
    walk.place_fd = fd
    walk.root = root
    return 0


cdef bint path_to(Walk *walk, uint32_t node) noexcept nogil:
    """Put the names from below the subject path to ``node`` into walk.path, each with a zero byte behind it."""
    cdef Core *core = walk.core
    cdef size_t size = 0
    cdef uint32_t at = node
    cdef char *end
    while core.nodes[at].parent:
        size += <size_t>core.nodes[at].name_size + 1
        at = core.nodes[at].parent
    walk.path.size = 0
    if not buffer_room(&walk.path, size):
        return False
    walk.path.size = size
    end = walk.path.data + size
    at = node
    while core.nodes[at].parent:
        end -= <size_t>core.nodes[at].name_size + 1
        memcpy(end, core.nodes[at].name, <size_t>core.nodes[at].name_size + 1)
        at = core.nodes[at].parent
    return True


cdef int descend(Walk *walk, int fd) noexcept nogil:
    """Follow walk.path from ``fd``, which is closed, in pieces that the kernel takes."""
    cdef size_t at = 0, piece, size
    cdef int further
    while at < walk.path.size:
        piece = at
        while True:
            size = strlen(walk.path.data + piece)
            if piece + size + 1 >= walk.path.size or piece + size + 1 - at > CHUNK:
                break
            walk.path.data[piece + size] = c'/'
            piece += size + 1
        further = below(fd, walk.path.data + at)
        close(fd)
        if further < 0:
            return further
        fd = further
        at = piece + size + 1
    return fd


cdef bint is_same(Walk *walk, uint32_t node, uint32_t serial, int fd) noexcept nogil:
    """Is the directory behind ``fd`` the one that ``node`` watches?"""
    cdef Core *core = walk.core
    cdef WdEntry *entry
    cdef uint32_t mask
    cdef int wd = -1
    cdef bint same = False
    core_lock(core)
    if node_is(core, node, serial) and core.nodes[node].wd >= 0:
        entry = wd_find(core, core.nodes[node].wd)
        mask = entry.mask & ~<uint32_t>ANCHORED
        wd = add_watch(core, fd, mask)
        same = wd == core.nodes[node].wd
        if wd >= 0 and not same:
            if wd_find(core, wd) == NULL:
                inotify_rm_watch(core.inotify_fd, wd)
            else:
                wd_attach(core, wd, mask, 0)
    core_unlock(core)
    return same


cdef int node_open(Walk *walk, uint32_t node, uint32_t serial) noexcept nogil:
    """Open a watched directory by its path; ESTALE (negative) when the path leads to another one by now."""
    cdef Core *core = walk.core
    cdef bint known
    cdef int fd
    core_lock(core)
    known = node_is(core, node, serial) and core.nodes[node].wd >= 0 and path_to(walk, node)
    if known:
        walk.top_path.size = 0
        buffer_add(&walk.top_path, walk.root.path, walk.root.path_size + 1)
    core_unlock(core)
    if not known or walk.top_path.failed:
        return -ESTALE
    fd = lookup(walk.place_fd, walk.top_path.data, O_PATH | O_DIRECTORY, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    if fd < 0:
        return fd
    fd = descend(walk, fd)
    if fd >= 0 and not is_same(walk, node, serial, fd):
        close(fd)
        return -ESTALE
    return fd


cdef int parent_open(Walk *walk, uint32_t node, uint32_t serial) noexcept nogil:
    """The descriptor of a parent, from the chain or opened into it; a negative errno on failure."""
    cdef int fd = chain_find(walk, node, serial)
    if fd >= 0:
        return fd
    chain_cut(walk, 0)
    fd = node_open(walk, node, serial)
    if fd >= 0:
        chain_push(walk, node, serial, fd)
    return fd


cdef bint stack_push(Walk *walk, uint32_t node) noexcept nogil:
    cdef Job *grown
    if walk.stack_count == walk.stack_capacity:
        grown = <Job *>realloc(walk.stack, <size_t>(walk.stack_capacity * 2 + 64) * sizeof(Job))
        if grown == NULL:
            walk.error = ENOMEM
            return False
        walk.stack = grown
        walk.stack_capacity = walk.stack_capacity * 2 + 64
    walk.stack[walk.stack_count].node = node
    walk.stack[walk.stack_count].serial = walk.core.nodes[node].serial
    walk.stack_count += 1
    return True


cdef void failed(Walk *walk, uint32_t node, int error) noexcept nogil:
    """A directory could not be watched (with the lock held): remember it for the caller, or tell the operator."""
    if walk.initial and (error == ENOSPC or error == ENOMEM):
        walk.error = error
    else:
        notice_push(walk.core, NOTICE_LIMIT, walk.core.nodes[node].root.subscription.number, error, 0, node)


cdef void lost(Walk *walk, uint32_t node, uint32_t serial, int error) noexcept nogil:
    """The directory was not found where the tree has it: its events, still in the queue, will tell why."""
    cdef Core *core = walk.core
    cdef bint gone = error == ENOENT or error == ENOTDIR or error == ELOOP
    core_lock(core)
    if node_is(core, node, serial):
        if gone or error == ESTALE:
            retry_push(core, node, gone, walk.rescan)
        elif error != ESRCH:
            failed(walk, node, error)
    core_unlock(core)


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
        if wd_find(core, wd) == NULL:
            inotify_rm_watch(core.inotify_fd, wd)
        else:
            wd_attach(core, wd, mask, 0)
        core.nodes[node].flags |= NODE_DOUBT
        retry_push(core, node, False, walk.rescan)
        return -1
    core.nodes[node].flags &= <unsigned short>~NODE_DOUBT
    if core.nodes[node].wd >= 0:
        while core.nodes[node].first_child:
            node_free_tree(core, core.nodes[node].first_child)
        wd_detach(core, node)
    if other:
        if wd_attach(core, wd, mask, 0) != NULL:
            take_over(walk, node, serial, other)
        return -1
    if wd_attach(core, wd, mask, node) == NULL:
        failed(walk, node, ENOMEM)
        return -1
    core.nodes[node].attempts = 0
    if subscription.mask & NOISY:
        core.nodes[node].flags |= NODE_QUIET
    if core.nodes[node].flags & NODE_CREATED:
        window_open(core, node)
    expect_echoes(walk, wd, parent_wd, name)
    subscription.directories += 1
    return wd


cdef void expect_echoes(Walk *walk, int wd, int parent_wd, const char *name) noexcept nogil:
    """A directory is about to be listed: its watches, and its parent's, may report that."""
    cdef Core *core = walk.core
    cdef WdEntry *parent
    if not core.noisy:
        return
    parent = wd_find(core, parent_wd) if parent_wd >= 0 else NULL
    if parent != NULL and parent.mask & NOISY:
        echo_expect(core, walk, parent_wd, name)
    if wd_find(core, wd).mask & NOISY:
        echo_expect(core, walk, wd, NULL)


cdef void rescan_window(Core *core, uint32_t node) noexcept nogil:
    cdef Window *window = window_find(core, node)
    if window == NULL:
        window = window_open(core, node)
        if window != NULL:
            window.repair = True


cdef void mark_old(Core *core, int directory, char *entries, long size) noexcept nogil:
    """After an overflow: tell apart what was made before events were lost, by its time of birth."""
    cdef dirent64 *entry
    cdef char *end = entries + size
    cdef statx_t status
    cdef int64_t born_ns
    while entries < end:
        entry = <dirent64 *>entries
        entries += entry.d_reclen
        if entry.d_name[0] == c'.' and (entry.d_name[1] == 0 or (entry.d_name[1] == c'.' and entry.d_name[2] == 0)):
            continue
        if statx(directory, entry.d_name, AT_SYMLINK_NOFOLLOW, STATX_TYPE | STATX_BTIME, &status) != 0:
            continue
        born_ns = <int64_t>status.stx_btime.tv_sec * 1000000000 + status.stx_btime.tv_nsec
        if status.stx_mask & STATX_BTIME and born_ns >= core.repair_since_ns:
            continue                    # new
        entry.d_type = OLD_DIRECTORY if S_ISDIR(status.stx_mode) else OLD_FILE


cdef void note_entries(Walk *walk, uint32_t node, int fd, const char *entries, long size) noexcept nogil:
    """Take one read of a directory into the tree; called with the lock held."""
    cdef Core *core = walk.core
    cdef Root *root = core.nodes[node].root
    cdef Subscription *subscription = root.subscription
    cdef Window *window = window_find(core, node) if core.windows != NULL else NULL
    cdef uint32_t depth = node_depth(core, node)
    cdef bint deeper = subscription.recursive and depth < DEPTH_MAX and (
        subscription.max_depth == 0 or depth < <uint32_t>subscription.max_depth)
    cdef const dirent64 *entry
    cdef const char *end = entries + size
    cdef stat_t status
    cdef size_t length
    cdef bint directory
    cdef uint32_t child
    while entries < end:
        entry = <const dirent64 *>entries
        entries += entry.d_reclen
        length = strlen(entry.d_name)
        if entry.d_name[0] == c'.' and (length == 1 or (length == 2 and entry.d_name[1] == c'.')):
            continue
        directory = entry.d_type == DT_DIR or entry.d_type == OLD_DIRECTORY
        if entry.d_type == DT_UNKNOWN:
            directory = fstatat(fd, entry.d_name, &status, AT_SYMLINK_NOFOLLOW) == 0 and S_ISDIR(status.st_mode)
        if entry.d_type == OLD_FILE:
            continue
        child = node_find(core, node, entry.d_name, length) if directory else 0
        if window != NULL and not (window.repair and child) and window_name(
                core, window, entry.d_name, length) == NULL:
            window_add(core, window, entry.d_name, length, directory)
        if not directory or is_ignored(subscription, entry.d_name, length):
            continue
        if not deeper:
            if depth == DEPTH_MAX:
                notice_push(core, NOTICE_DEPTH, subscription.number, 0, DEPTH_MAX, node)
            continue
        if child == 0:
            child = node_new(core, node, root, entry.d_name, length)
            if child == 0:
                walk.error = ENOMEM
                return
            if window != NULL and not (window.repair and entry.d_type == OLD_DIRECTORY):
                core.nodes[child].flags |= NODE_CREATED
        elif core.nodes[child].wd >= 0 or core.nodes[child].flags & NODE_QUEUED:
            continue
        stack_push(walk, child)


cdef void list_directory(Walk *walk, uint32_t node, uint32_t serial, int fd, int wd) noexcept nogil:
    """Read a directory that was just armed, and close what stands open in the queue because of it."""
    cdef Core *core = walk.core
    cdef long size = 0
    cdef int reads = 0, error = 0
    cdef int reading = openat(fd, b".", O_RDONLY | O_DIRECTORY | O_NONBLOCK | O_CLOEXEC)
    cdef uint32_t child
    if reading < 0:
        error = errno
    if walk.rescan:                     # what is known below is looked at again as well: it may be gone
        core_lock(core)
        child = core.nodes[node].first_child if node_is(core, node, serial) else 0
        while child:
            stack_push(walk, child)
            child = core.nodes[child].next_sibling
        core_unlock(core)
    while reading >= 0:
        size = syscall(SYS_getdents64, reading, walk.entries, ENTRIES)
        reads += 1
        if size <= 0:
            break
        if walk.rescan:
            mark_old(core, reading, walk.entries, size)
        core_lock(core)
        if node_is(core, node, serial) and core.nodes[node].wd == wd:
            note_entries(walk, node, reading, walk.entries, size)
        core_unlock(core)
    if reading >= 0:
        close(reading)
    listing_done(walk, node, serial, reads, error)


cdef void listing_done(Walk *walk, uint32_t node, uint32_t serial, int reads, int error) noexcept nogil:
    """Close what stands open in the queue because of a listing, which read the directory so many times or failed."""
    cdef Core *core = walk.core
    cdef Window *window
    cdef Echo *echo
    if not error and not core.windows and not core.echoes:
        return                          # nothing of ours can stand open: only this thread opens it for this node
    core_lock(core)
    window = core.windows
    while window != NULL:               # also of a directory that is gone meanwhile
        if window.node == node and window.serial == serial and window.fence == 0:
            window.fence = fence_place(core)
        window = window.next
    if error and node_is(core, node, serial):
        failed(walk, node, error)
    echo = core.echoes
    while echo != NULL:
        if echo.fence == 0 and echo.walk == walk:
            echo.accesses = max(0, reads - ((1 << 30) - echo.accesses))
            echo.fence = fence_place(core)
        echo = echo.next
    core_unlock(core)


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
