# cython: language_level=3, boundscheck=False, wraparound=False
"""A walk through a container: its descriptors, and getting to a directory that the tree knows.

Facts about path lookup that shape this file:

* The way to a subject path is looked up inside the container, see entering.pyx. Below it every step is one name, opened
  from its parent's descriptor without following links.
* A path says where a directory was, not which one it is. inotify_add_watch(2) tells: for an inode that is watched
  already it returns the same watch descriptor. So every directory that is reached by path, and not from the descriptor
  of its parent, is checked that way before it is used.
* An O_PATH descriptor causes no events, reading a directory does; see window.pyx.
* Any descriptor inside a container keeps its mounts busy. All are closed at the end of each walk, and the working
  directory, which makes inotify_add_watch cheap, is put back.
"""

from libc.errno cimport EACCES, EAGAIN, EDQUOT, ELOOP, EMFILE, ENFILE, ENOENT, ENOMEM, ENOSPC, ENOTDIR, ESRCH, ESTALE
from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset, strlen

from argusd._records cimport buffer_add, buffer_free, buffer_room
from argusd.engine.core cimport (
    ANCHORED,
    LOOKED,
    NODE_ORPHAN,
    NOTICE_LIMIT,
    RELEASED,
    REMOVING,
    core_lock,
    core_unlock,
    fence_place,
    wd_find,
    wd_stands,
    wd_stray,
)
from argusd.engine.entering cimport (
    entrance_close,
    entrance_free,
    entrance_init,
    entrance_open,
    open_below,
    open_path,
    open_plain_path,
)
from argusd.engine.home cimport followed_copy
from argusd.engine.opening cimport add_watch
from argusd.engine.starving cimport starve
from argusd.engine.tree cimport node_is, node_path
from argusd.engine.work cimport job_push, look_end, notice_push, retry_push
from argusd.includes.linux cimport close, usleep
from argusd.includes.pthread cimport load_int, store_int
from argusd.twins cimport twin_keep


cdef enum:
    CHUNK = 3000                    # bytes of a relative path looked up at once; the kernel takes 4095


cdef void walk_twin(Twin *twin, Core *core, twin_body body, void *argument) noexcept nogil:
    """Prepare a twin for walks: it has what it takes to watch, and to wake the reader and Python."""
    memset(twin, 0, sizeof(Twin))
    twin.body, twin.argument, twin.name = body, argument, b"argusd-walk"
    twin_keep(twin, core.inotify_fd)
    twin_keep(twin, core.fence_fds[0])
    twin_keep(twin, core.fence_fds[1])
    twin_keep(twin, core.told_fd)


cdef int walk_init(Walk *walk, Core *core, Twin *twin) noexcept nogil:
    """Prepare for walks in a twin. 0 or an errno."""
    cdef int error
    memset(walk, 0, sizeof(Walk))
    walk.core, walk.twin = core, twin
    error = entrance_init(&walk.entrance, core.way, twin.apart)
    if walk.entrance.shared:
        store_int(&core.shared, 1)
    walk.entries = <char *>malloc(ENTRIES)
    return error or (0 if walk.entries != NULL else ENOMEM)


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
    entrance_close(&walk.entrance)
    walk.root = NULL


cdef void walk_free(Walk *walk) noexcept nogil:
    walk_leave(walk)
    entrance_free(&walk.entrance)
    free(walk.stack)
    free(walk.later)
    free(walk.entries)
    buffer_free(&walk.path)
    buffer_free(&walk.top_path)
    buffer_free(&walk.mounts)
    buffer_free(&walk.unreadable)


cdef int walk_enter(Walk *walk, Root *root) noexcept nogil:
    """Turn to the tree of ``root``; 0 or an errno."""
    cdef int error
    if walk.root == root:
        return 0
    walk_leave(walk)
    error = entrance_open(&walk.entrance, walk.core, root.subscription.place)
    if not error:
        walk.root = root
    return error


cdef bint path_to(Walk *walk, uint32_t node) noexcept nogil:
    """Put the names from below the subject path to ``node`` into walk.path, each with a zero byte behind it."""
    cdef Core *core = walk.core
    cdef size_t size = 0
    cdef uint32_t at = node
    cdef char *end
    while core.nodes[at].parent:
        if core.nodes[at].flags & NODE_ORPHAN:
            return False                # no path leads there any more
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
        further = open_below(&walk.entrance, fd, walk.path.data + at)
        close(fd)
        if further < 0:
            return further
        fd = further
        at = piece + size + 1
    return fd


cdef bint is_same(Walk *walk, uint32_t node, uint32_t serial, int fd) noexcept nogil:
    """Is the directory behind ``fd`` the one that ``node`` watches?"""
    cdef Core *core = walk.core
    cdef unsigned long long since
    cdef uint32_t mask = 0
    cdef int wd = -1
    cdef bint same = False
    core_lock(core)
    since = core.gone
    if node_is(core, node, serial) and core.nodes[node].wd >= 0:
        mask = wd_find(core, core.nodes[node].wd).mask & ~<uint32_t>(ANCHORED | LOOKED | RELEASED | REMOVING)
    core_unlock(core)
    if mask:
        wd = add_watch(core, fd, mask)
    if wd < 0:
        return False
    core_lock(core)
    if wd_stands(core, wd, since):
        same = node_is(core, node, serial) and core.nodes[node].wd == wd
        wd_stray(core, wd, mask)        # asked for more by now, or somebody else's, or nobody's
    core_unlock(core)
    return same


cdef bint real_path(Walk *walk, uint32_t node, uint32_t serial) noexcept nogil:
    """Have in walk.top_path where the subject's path led when it was looked up, without its links."""
    cdef bint known
    core_lock(walk.core)
    known = node_is(walk.core, node, serial)
    walk.top_path.size = 0
    if known:
        buffer_add(&walk.top_path, walk.root.real.data, walk.root.real.size)
        buffer_add(&walk.top_path, b"", 1)
    core_unlock(walk.core)
    return known and not walk.top_path.failed


cdef int top_open(Walk *walk, uint32_t node, uint32_t serial) noexcept nogil:
    """Open the directory that the subject path stands for, or that it follows; a negative errno on failure."""
    cdef int fd = -1
    cdef bint beyond
    core_lock(walk.core)
    walk.top_path.size = 0
    buffer_add(&walk.top_path, walk.root.path, walk.root.path_size + 1)
    beyond = walk.root.beyond and walk.root.follow_fd >= 0
    core_unlock(walk.core)
    if beyond:                      # no path leads there
        fd = followed_copy(walk.twin, walk.core, walk.root)
    if fd >= 0 or walk.top_path.failed:
        return fd if fd >= 0 else -ENOMEM
    fd = open_path(&walk.entrance, walk.top_path.data)
    if fd == -ELOOP and real_path(walk, node, serial):      # a link of procfs, which nobody is to follow for us
        fd = open_plain_path(&walk.entrance, walk.top_path.data)
    return fd


cdef int node_open(Walk *walk, uint32_t node, uint32_t serial) noexcept nogil:
    """Open a watched directory by its path; ESTALE (negative) when the path leads to another one by now."""
    cdef Core *core = walk.core
    cdef bint known
    cdef int fd
    core_lock(core)
    known = node_is(core, node, serial) and core.nodes[node].wd >= 0 and path_to(walk, node)
    core_unlock(core)
    if not known:
        return -ESTALE
    fd = top_open(walk, node, serial)
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


cdef bint jobs_add(Walk *walk, Job **jobs, uint32_t *count, uint32_t *capacity, uint32_t node) noexcept nogil:
    cdef Job *grown
    if count[0] == capacity[0]:
        grown = <Job *>realloc(jobs[0], <size_t>(capacity[0] * 2 + 64) * sizeof(Job))
        if grown == NULL:
            walk.error = ENOMEM
            return False
        jobs[0] = grown
        capacity[0] = capacity[0] * 2 + 64
    jobs[0][count[0]].node = node
    jobs[0][count[0]].serial = walk.core.nodes[node].serial
    count[0] += 1
    return True


cdef void put_off(Walk *walk, uint32_t node) noexcept nogil:
    """Go on with ``node`` when the reader has taken over what was found there."""
    jobs_add(walk, &walk.later, &walk.later_count, &walk.later_capacity, node)


cdef bint take_later(Walk *walk) noexcept nogil:
    """Wait for the reader, and have what was put off on the stack; False when there is nothing."""
    cdef uint32_t i
    if not walk.later_count or walk.error:
        walk.later_count = 0
        return False
    wait_for_reader(walk.core)
    core_lock(walk.core)
    for i in range(walk.later_count):
        if node_is(walk.core, walk.later[i].node, walk.later[i].serial):
            stack_push(walk, walk.later[i].node)
    core_unlock(walk.core)
    walk.later_count = 0
    return walk.stack_count > 0


cdef void wait_for_reader(Core *core) noexcept nogil:
    """Until the reader has come by a mark that is put into the queue now."""
    cdef uint64_t fence
    cdef bint passed = False
    core_lock(core)
    fence = fence_place(core)
    core_unlock(core)
    while not passed and not load_int(&core.stopping):
        usleep(200)
        core_lock(core)
        if core.fence_wd < 0:
            fence_place(core)               # there is nothing to mark it with yet
        passed = core.fence_passed >= fence
        core_unlock(core)


cdef bint stack_push(Walk *walk, uint32_t node) noexcept nogil:
    return jobs_add(walk, &walk.stack, &walk.stack_count, &walk.stack_capacity, node)


cdef bint is_shortage(int error) noexcept nogil:
    """Is it to be tried again, because there was nothing left for the moment?"""
    return error == EMFILE or error == ENFILE or error == ENOMEM


cdef void failed(Walk *walk, uint32_t node, int error) noexcept nogil:
    """A directory could not be watched (with the lock held).

    The caller is told, or the operator, and what ran out may be there again: then it is tried again.
    """
    if walk.initial and (error == ENOSPC or error == ENOMEM):
        walk.error = error
        return
    if is_shortage(error) or error == ENOSPC or error == EDQUOT:
        starve(walk.core, node, error)
        return
    if error == EACCES and not walk.unreadable.size:
        node_path(walk.core, node, &walk.unreadable)
    notice_push(walk.core, NOTICE_LIMIT, walk.core.nodes[node].root.subscription.number, error, 0, node)


cdef bint is_absence(int error) noexcept nogil:
    return error == ENOENT or error == ENOTDIR or error == ELOOP


cdef void lost(Walk *walk, Look *look, int error) noexcept nogil:
    """The place of a look cannot be reached by its path as the tree has it: events, still in the queue, will tell why.

    Where they do not, the directory above is not where the tree has it. That one is tried no more often than this: when
    all that is in it had it tried each time, its own next attempt would be a minute away within milliseconds.
    """
    cdef Core *core = walk.core
    cdef uint32_t node = look.node, parent
    core_lock(core)
    if node_is(core, node, look.serial):
        if is_absence(error) or error == ESTALE or error == EAGAIN:
            retry_push(core, node)
            parent = core.nodes[node].parent
            if core.nodes[node].attempts > 2 and parent and core.nodes[parent].attempts < core.nodes[node].attempts:
                job_push(core, parent)
        elif error != ESRCH:
            failed(walk, node, error)
    look_end(core, look)
    core_unlock(core)
