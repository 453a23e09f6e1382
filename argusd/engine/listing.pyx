# cython: language_level=3, boundscheck=False, wraparound=False
"""Listing a directory: what is found goes into the tree, and what the listing leaves in the queue is provided for.

See window.pyx for why a listing has to be provided for at all.
"""

from libc.errno cimport ENOMEM, errno
from libc.stdint cimport int64_t
from libc.string cimport strlen

from argusd.engine.core cimport (
    DEPTH_MAX,
    NODE_CREATED,
    NODE_QUEUED,
    NODE_RELIST,
    NODE_RESCAN,
    NODE_UNLISTED,
    NOISY,
    NOTICE_DEPTH,
    Root,
    Subscription,
    WdEntry,
    Window,
    core_lock,
    core_unlock,
    fence_if_needed,
    wd_find,
)
from argusd.engine.tree cimport is_ignored, node_depth, node_find, node_is, node_new
from argusd.engine.walk cimport ENTRIES, chain_push, failed, is_shortage, stack_push
from argusd.engine.window cimport echo_expect, echoes_end, window_add, window_due, window_find, window_name
from argusd.engine.work cimport notice_push
from argusd.includes.linux cimport (
    AT_SYMLINK_NOFOLLOW,
    DT_DIR,
    DT_UNKNOWN,
    O_CLOEXEC,
    O_DIRECTORY,
    O_NONBLOCK,
    O_PATH,
    O_RDONLY,
    STATX_BTIME,
    STATX_TYPE,
    S_ISDIR,
    SYS_getdents64,
    close,
    dirent64,
    fstatat,
    openat,
    stat_t,
    statx,
    statx_t,
    syscall,
)


cdef enum:
    OLD_FILE = 200                  # in place of a DT_* of getdents64(2), by mark_old()
    OLD_DIRECTORY = 201


cdef void expect_echoes(Walk *walk, int wd, int parent_wd, const char *name) noexcept nogil:
    """A directory is about to be listed: its watches, and its parent's, may report that."""
    cdef Core *core = walk.core
    cdef WdEntry *itself
    cdef WdEntry *parent
    if not core.noisy:
        return
    itself = wd_find(core, wd)          # NULL when the kernel has let the watch go meanwhile
    parent = wd_find(core, parent_wd) if parent_wd >= 0 else NULL
    if parent != NULL and parent.mask & NOISY:
        echo_expect(core, walk, parent_wd, name)
    if itself != NULL and itself.mask & NOISY:
        echo_expect(core, walk, wd, NULL)


cdef void listing_begin(Walk *walk, uint32_t node, uint32_t serial, int wd, int parent_wd,
                        const char *name) noexcept nogil:
    """A directory is the next to be listed; ``name`` is its own in its parent, or NULL. Called with the lock held."""
    cdef Core *core = walk.core
    cdef Window *window
    cdef uint32_t child
    expect_echoes(walk, wd, parent_wd, name)
    walk.repair = False
    walk.stacked = walk.stack_count
    if not node_is(core, node, serial):         # it is read all the same
        return
    window = window_find(core, node) if core.repair else NULL
    walk.repair = window != NULL and window.repair
    if core.nodes[node].flags & NODE_RESCAN:    # what is known below is looked at again as well: it may be gone
        child = core.nodes[node].first_child
        while child:
            stack_push(walk, child)
            child = core.nodes[child].next_sibling
        core.nodes[node].flags &= <unsigned short>~NODE_RESCAN


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


cdef void find_types(int directory, char *entries, long size) noexcept nogil:
    """Some file systems do not say in a listing what is a directory: ask, without the lock."""
    cdef dirent64 *entry
    cdef char *end = entries + size
    cdef stat_t status
    while entries < end:
        entry = <dirent64 *>entries
        entries += entry.d_reclen
        if entry.d_type == DT_UNKNOWN and fstatat(directory, entry.d_name, &status, AT_SYMLINK_NOFOLLOW) == 0 and (
                S_ISDIR(status.st_mode)):
            entry.d_type = DT_DIR


cdef void note_entries(Walk *walk, uint32_t node, const char *entries, long size) noexcept nogil:
    """Take one read of a directory into the tree; called with the lock held."""
    cdef Core *core = walk.core
    cdef Root *root = core.nodes[node].root
    cdef Subscription *subscription = root.subscription
    cdef Window *window = window_find(core, node)
    cdef uint32_t depth = node_depth(core, node)
    cdef bint deeper = subscription.recursive and depth < DEPTH_MAX and (
        subscription.max_depth == 0 or depth < <uint32_t>subscription.max_depth)
    cdef const dirent64 *entry
    cdef const char *end = entries + size
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
    cdef int reading = openat(fd, b".", O_RDONLY | O_DIRECTORY | O_NONBLOCK | O_CLOEXEC)
    list_open(walk, node, serial, reading, wd, errno if reading < 0 else 0, False)


cdef void list_readable(Walk *walk, uint32_t node, uint32_t serial, int fd, int wd) noexcept nogil:
    """The same with a descriptor that can be read, which is closed; what is found below will be opened from another."""
    list_open(walk, node, serial, fd, wd, 0, True)


cdef void keep_open(Walk *walk, uint32_t node, uint32_t serial, int reading) noexcept nogil:
    cdef int fd = openat(reading, b".", O_PATH | O_DIRECTORY | O_CLOEXEC)
    if fd >= 0:
        chain_push(walk, node, serial, fd)


cdef void list_open(Walk *walk, uint32_t node, uint32_t serial, int reading, int wd, int error,
                    bint alone) noexcept nogil:
    """``alone``: there is no descriptor of the directory among those that the walk keeps."""
    cdef Core *core = walk.core
    cdef long size = 0
    cdef int reads = 0
    while reading >= 0:
        size = syscall(SYS_getdents64, reading, walk.entries, ENTRIES)
        reads += 1
        if size <= 0:
            break
        find_types(reading, walk.entries, size)
        if walk.repair:
            mark_old(core, reading, walk.entries, size)
        core_lock(core)
        if node_is(core, node, serial) and core.nodes[node].wd == wd:
            note_entries(walk, node, walk.entries, size)
        core_unlock(core)
    if reading >= 0:
        if alone and walk.stack_count > walk.stacked:
            keep_open(walk, node, serial, reading)
        close(reading)
    listing_done(walk, node, serial, reads, error)


cdef void listing_done(Walk *walk, uint32_t node, uint32_t serial, int reads, int error) noexcept nogil:
    """Close what stands open in the queue because of a listing, which read the directory so many times or failed."""
    cdef Core *core = walk.core
    cdef Window *window
    core_lock(core)
    if node_is(core, node, serial):
        core.nodes[node].flags &= <unsigned short>~NODE_UNLISTED
        core.nodes[node].listed = <uint32_t>fence_if_needed(core)
        window = window_find(core, node)
        if window != NULL and window.due.queue == NULL:
            window_due(core, window)
        if not error:
            core.nodes[node].attempts = 0
        else:
            if is_shortage(error):
                core.nodes[node].flags |= NODE_RELIST
            failed(walk, node, error)
    echoes_end(core, walk, reads)
    core_unlock(core)
