# cython: language_level=3, boundscheck=False, wraparound=False
"""What a subject path stands for, and the thread that brings the trees in line with the file system.

Facts about subject paths that shape this file:

* A path can come to stand for another file by what happens at any of its steps: a directory on the way is moved, a
  symbolic link is re-pointed, the file itself is replaced by a rename. So a look-up goes step by step, watches each
  directory before it looks for the next name in it, and remembers the two as an anchor. An event at an anchor leads to
  another look-up; no change between the watch and the look can be missed.
* Every step opens one name with O_PATH, without following links; link targets are read and taken apart here, an
  absolute one beginning at the container's root. ``..`` goes back along the names that were really gone through, and
  stops at the root. So no link leads out of the container.
* A file that is still the same is told by device, inode and time of birth: inode numbers are used again.
"""

from libc.errno cimport ELOOP, EMFILE, ENAMETOOLONG, ENFILE, ENOMEM, ENOSPC, ENOTDIR, ESRCH, errno
from libc.stdint cimport uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport realloc
from libc.string cimport memcpy, memset, strcmp, strdup, strlen, strncmp, strrchr

from argusd._records cimport Buffer, buffer_add, buffer_free
from argusd._tree cimport (
    ANCHORED,
    NODE_CREATED,
    NOISY,
    NOTICE_LIMIT,
    Anchor,
    Core,
    Echo,
    Identity,
    Job,
    Name,
    Root,
    Subscription,
    Swap,
    WdEntry,
    anchor_add,
    anchors_drop,
    core_lock,
    core_unlock,
    fence_place,
    is_ignored,
    node_free_tree,
    node_is,
    node_new,
    notice_push,
    root_unsettle,
    wd_attach,
    wd_find,
    wd_forget,
)
from argusd._walk cimport (
    ENTRIES,
    Walk,
    add_watch,
    chain_push,
    drain_stack,
    expect_echoes,
    finish,
    list_directory,
    lookup,
    node_open,
    rescan_window,
    step,
    walk_enter,
    walk_free,
    walk_init,
    walk_leave,
    wanted,
)
from argusd._window cimport window_open
from argusd.includes.linux cimport (
    AT_EMPTY_PATH,
    DT_LNK,
    DT_UNKNOWN,
    F_DUPFD_CLOEXEC,
    IN_CREATE,
    IN_DELETE,
    IN_MASK_ADD,
    IN_MOVED_FROM,
    IN_MOVED_TO,
    O_CLOEXEC,
    O_DIRECTORY,
    O_NOFOLLOW,
    O_NONBLOCK,
    O_PATH,
    O_RDONLY,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    STATX_BTIME,
    STATX_INO,
    STATX_TYPE,
    SYS_getdents64,
    close,
    dirent64,
    fcntl,
    inotify_add_watch,
    inotify_rm_watch,
    openat,
    readlinkat,
    statx,
    statx_t,
    syscall,
    usleep,
)
from argusd.includes.pthread cimport load_int, pthread_cond_wait, pthread_mutex_lock, pthread_mutex_unlock

cdef enum:
    LINKS_MAX = 40                  # symbolic links in one look-up, as in the kernel
    STEPS_MAX = 1024                # names in one look-up, those of link targets included
    PATH_SIZE = 4096
    PACE = 64                       # directories listed again before the reader is waited for
    REMOVALS = 64                   # watches removed while the lock is held
    S_IFMT = 0o170000
    S_IFDIR = 0o040000
    S_IFLNK = 0o120000

cdef uint32_t STEP_EVENTS = IN_CREATE | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO


# ---- one look-up

# Where a look-up has come to.
cdef struct Search:
    int fd                          # O_PATH descriptor of the directory reached, or of what was found
    Buffer rest                     # what is still to be gone, with a zero byte at the end
    size_t at
    size_t own                      # bytes at the end of rest that are of the user's path, not of a link
    Buffer real                     # the names gone through: the way back for ".."
    int step_wd                     # of the directory in which the last name was found, -1 before the first
    char step_name[256]
    int links
    int steps
    bint directory                  # what ``fd`` is


cdef bint search_begin(Search *search, Walk *walk, Root *root) noexcept nogil:
    memset(search, 0, sizeof(Search))
    core_lock(walk.core)            # the reader may give a followed subject another path
    buffer_add(&search.rest, root.path, root.path_size + 1)
    core_unlock(walk.core)
    search.own = search.rest.size
    search.step_wd = -1
    search.directory = True
    search.fd = lookup(walk.place_fd, b".", O_PATH | O_DIRECTORY, RESOLVE_NO_MAGICLINKS)
    return search.fd >= 0 and not search.rest.failed


cdef void search_end(Search *search) noexcept nogil:
    if search.fd >= 0:
        close(search.fd)
    buffer_free(&search.rest)
    buffer_free(&search.real)


cdef int go_to(Search *search, Walk *walk) noexcept nogil:
    """Open the directory of search.real again; 0 or an errno."""
    cdef const char *path = b"."
    cdef int fd
    buffer_add(&search.real, b"", 1)
    search.real.size -= 1
    if search.real.failed:
        return ENOMEM
    if search.real.size:
        path = search.real.data
    close(search.fd)
    fd = lookup(walk.place_fd, path, O_PATH | O_DIRECTORY,
                RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS)
    search.fd = fd
    search.directory = True
    return 0 if fd >= 0 else -fd


cdef int go_back(Search *search, Walk *walk) noexcept nogil:
    while search.real.size and search.real.data[search.real.size - 1] != c'/':
        search.real.size -= 1
    if search.real.size:
        search.real.size -= 1
    return go_to(search, walk)


cdef int go_link(Search *search, Walk *walk, int link) noexcept nogil:
    """Put a link's target in front of what is still to be gone; closes ``link``. 0 or an errno."""
    cdef char target[PATH_SIZE]
    cdef Buffer rest
    cdef ssize_t size = readlinkat(link, b"", target, sizeof(target))
    cdef int error = errno if size < 0 else 0
    close(link)
    search.links += 1
    if error:
        return error
    if search.links > LINKS_MAX:
        return ELOOP
    if size == 0 or <size_t>size >= sizeof(target):
        return ENAMETOOLONG
    memset(&rest, 0, sizeof(rest))
    buffer_add(&rest, target, <size_t>size)
    buffer_add(&rest, b"/", 1)
    buffer_add(&rest, search.rest.data + search.at, search.rest.size - search.at)
    buffer_free(&search.rest)
    search.rest = rest
    search.at = 0
    if target[0] == c'/':
        search.real.size = 0
        return go_to(search, walk)
    return 0


cdef int anchor_here(Search *search, Walk *walk, Root *root, const char *name, bint last) noexcept nogil:
    """Watch the directory reached for what happens to ``name``; 0 or an errno."""
    cdef Core *core = walk.core
    cdef int wd, error = 0
    core_lock(core)
    if not root.subscription.cancelled:
        wd = add_watch(core, search.fd, STEP_EVENTS)
        if wd < 0:
            error = -wd
        else:
            search.step_wd = wd
            memcpy(search.step_name, name, strlen(name) + 1)
            wd_attach(core, wd, STEP_EVENTS, 0)
            if anchor_add(core, root, wd, name, strlen(name), last) == NULL:
                error = ENOMEM
    core_unlock(core)
    return error


cdef void settle_presence(Core *core, Root *root, const char *name, bint found) noexcept nogil:
    """Note whether the name of a new anchor was there; from then on its events tell, in their order."""
    cdef Anchor *anchor
    core_lock(core)
    anchor = root.anchors
    while anchor != NULL:
        if anchor.fresh and strcmp(anchor.name, name) == 0:
            anchor.present = found
            anchor.fresh = False
        anchor = anchor.next_in_root
    core_unlock(core)


cdef int go_name(Search *search, Walk *walk, Root *root, const char *name, bint last) noexcept nogil:
    """One step of the look-up; 0 or an errno, ENOENT with the anchor standing."""
    cdef statx_t status
    cdef int fd, error = anchor_here(search, walk, root, name, last)
    if error:
        return error
    fd = lookup(search.fd, name, O_PATH | O_NOFOLLOW, RESOLVE_NO_MAGICLINKS)
    settle_presence(walk.core, root, name, fd >= 0)
    if fd < 0:
        return -fd
    if statx(fd, b"", AT_EMPTY_PATH, STATX_TYPE, &status) != 0:
        error = errno
        close(fd)
        return error
    if (status.stx_mode & S_IFMT) == S_IFLNK:
        return go_link(search, walk, fd)
    close(search.fd)
    search.fd = fd
    search.directory = (status.stx_mode & S_IFMT) == S_IFDIR
    if search.real.size:
        buffer_add(&search.real, b"/", 1)
    buffer_add(&search.real, name, strlen(name))
    return ENOMEM if search.real.failed else 0


cdef int search_path(Search *search, Walk *walk, Root *root) noexcept nogil:
    """Go the whole path; 0 or an errno."""
    cdef char name[256]
    cdef const char *begin
    cdef size_t size
    cdef bint last, own
    cdef int error
    while True:
        while search.rest.data[search.at] == c'/':
            search.at += 1
        if search.rest.data[search.at] == 0:
            return 0
        if not search.directory:
            return ENOTDIR
        begin = search.rest.data + search.at
        size = 0
        while begin[size] != 0 and begin[size] != c'/':
            size += 1
        if size > 255:
            return ENAMETOOLONG
        memcpy(name, begin, size)
        name[size] = 0
        search.at += size
        search.steps += 1
        if search.steps > STEPS_MAX:
            return ELOOP
        if size == 1 and name[0] == c'.':
            continue
        if size == 2 and name[0] == c'.' and name[1] == c'.':
            error = go_back(search, walk)
        else:
            own = search.rest.size - search.at <= search.own
            last = own and search.rest.data[search.at] == 0
            error = go_name(search, walk, root, name, last)
        if error:
            return error


# ---- what it leads to

cdef bint identify(int fd, Identity *identity) noexcept nogil:
    cdef statx_t status
    memset(identity, 0, sizeof(Identity))
    if statx(fd, b"", AT_EMPTY_PATH, STATX_INO | STATX_BTIME, &status) != 0:
        return False
    identity.valid = True
    identity.device = <uint64_t>status.stx_dev_major << 32 | status.stx_dev_minor
    identity.inode = status.stx_ino
    if status.stx_mask & STATX_BTIME:
        identity.born_s = status.stx_btime.tv_sec
        identity.born_ns = status.stx_btime.tv_nsec
    return True


cdef int watch_any(Core *core, int fd, uint32_t mask) noexcept nogil:
    """Watch what is behind an O_PATH descriptor, directory or not; a negative errno on failure."""
    cdef char path[40]
    cdef int wd
    snprintf(path, sizeof(path), b"/proc/self/fd/%d", fd)
    wd = inotify_add_watch(core.inotify_fd, path, mask | IN_MASK_ADD)
    return wd if wd >= 0 else -errno


cdef bint same_file(const Identity *a, const Identity *b) noexcept nogil:
    return (a.valid and b.valid and a.device == b.device and a.inode == b.inode
            and a.born_s == b.born_s and a.born_ns == b.born_ns)


cdef uint32_t arm_found(Walk *walk, Root *root, Search *search, int *error) noexcept nogil:
    """Watch what the path stands for. With the lock held; the new node, or 0 when it is the one watched already."""
    cdef Core *core = walk.core
    cdef bint tree = search.directory and root.subscription.recursive
    cdef uint32_t mask = wanted(root.subscription, tree), node
    cdef int wd = watch_any(core, search.fd, mask)
    if wd < 0:
        error[0] = -wd
        return 0
    if root.top and core.nodes[root.top].wd == wd:
        wd_attach(core, wd, mask, 0)
        if root.next_top:
            node_free_tree(core, root.next_top)
        return 0
    if root.next_top and core.nodes[root.next_top].wd == wd:
        wd_attach(core, wd, mask, 0)
        return 0
    if root.next_top:
        node_free_tree(core, root.next_top)
    node = node_new(core, 0, root, NULL, 0)
    if node == 0 or wd_attach(core, wd, mask, node) == NULL:
        error[0] = ENOMEM
        return 0
    if walk.initial:
        root.top = node
    else:
        root.next_top = node
        root.unsure = True          # its events wait until its coming is reported
        if not same_file(&root.known, &root.found):
            core.nodes[node].flags |= NODE_CREATED
            if search.directory:
                window_open(core, node)
    if root.subscription.follow_move and root.follow_fd < 0:
        root.follow_fd = fcntl(search.fd, F_DUPFD_CLOEXEC, 0)
    if search.directory:
        root.subscription.directories += 1
    if search.directory and (tree or not walk.initial):
        expect_echoes(walk, wd, search.step_wd, search.step_name)
    return node


cdef bint is_transient(int error) noexcept nogil:
    return error == EMFILE or error == ENFILE or error == ENOMEM or error == ENOSPC


cdef uint32_t take_result(Walk *walk, Root *root, Search *search, int *error) noexcept nogil:
    """Put what a look-up found, or that it found nothing, into the root. With the lock held; a node to be listed."""
    cdef Core *core = walk.core
    cdef uint32_t node = 0
    if error[0] and is_transient(error[0]):     # says nothing about the path: what was watched goes on
        root.found = root.known
        return 0
    memset(&root.found, 0, sizeof(Identity))
    if not error[0]:
        root.directory = search.directory
        identify(search.fd, &root.found)
        node = arm_found(walk, root, search, error)
    elif root.next_top:
        node_free_tree(core, root.next_top)
    if walk.initial:
        root.known = root.found
    anchors_drop(core, root, root.subscription.follow_move and root.found.valid)
    return node


cdef bint subject_is_ignored(const Root *root) noexcept nogil:
    cdef const char *name = strrchr(root.path, c'/') + 1
    return root.subscription.recursive and is_ignored(root.subscription, name, strlen(name))


cdef int look_up(Walk *walk, Root *root) noexcept nogil:
    """See what a subject path stands for, watch that, and walk it when it is another tree than before.

    0 or the errno that keeps the path from being watched for now; walk.error when the kernel has no watch left.
    """
    cdef Core *core = walk.core
    cdef Search search
    cdef uint32_t node = 0, serial = 0
    cdef int wd = -1, error = walk_enter(walk, root)
    cdef bint tree
    if error:
        return error
    core_lock(core)
    root.round += 1
    core_unlock(core)
    if not search_begin(&search, walk, root):
        error = -search.fd if search.fd < 0 else ENOMEM
    else:
        error = search_path(&search, walk, root)
    if not error and root.subscription.only_dir and not search.directory:
        error = ENOTDIR
    core_lock(core)
    if root.subscription.cancelled:
        error = ESRCH
    else:
        node = take_result(walk, root, &search, &error)
        if node:
            serial = core.nodes[node].serial
            wd = core.nodes[node].wd
        if not walk.initial:
            root_unsettle(core, root)
            if is_transient(error):
                notice_push(core, NOTICE_LIMIT, root.subscription.number, error, 0, root.top)
    core_unlock(core)
    if walk.initial and is_transient(error):
        walk.error = error
    tree = node and search.directory and (root.subscription.recursive or not walk.initial)
    if tree:
        chain_push(walk, node, serial, search.fd)
        list_directory(walk, node, serial, search.fd, wd)
        search.fd = -1
        drain_stack(walk)
    if tree and root.subscription.recursive:
        finish(walk, node, serial)
        if root.subscription.mask & NOISY and not walk.error:
            make_loud(walk, root, node, serial)
    search_end(&search)
    return error


cdef void make_loud(Walk *walk, Root *root, uint32_t node, uint32_t serial) noexcept nogil:
    """The last step of a first walk: the subject path itself gets the events that the walk would have caused."""
    cdef Core *core = walk.core
    cdef uint32_t mask = wanted(root.subscription, False)
    cdef int wd, fd = node_open(walk, node, serial)
    if fd < 0:
        return
    core_lock(core)
    if node_is(core, node, serial):
        wd = add_watch(core, fd, mask)
        if wd >= 0:
            wd_attach(core, wd, mask, 0)
    core_unlock(core)
    close(fd)


cdef int arm_root(Walk *walk, Root *root) noexcept nogil:
    """The first look at a subject path. 0 or the errno that keeps it from being watched for now."""
    if subject_is_ignored(root):
        return 0
    return look_up(walk, root)


# ---- what the reader asks for

cdef void do_job(Walk *walk, uint32_t node, uint32_t serial) noexcept nogil:
    """One directory that an event has named, and what turns out to be new below it."""
    cdef Core *core = walk.core
    cdef Subscription *subscription = NULL
    core_lock(core)
    if node_is(core, node, serial):
        subscription = core.nodes[node].root.subscription
        subscription.users += 1
    core_unlock(core)
    if subscription == NULL:
        return
    step(walk, node, serial)
    drain_stack(walk)
    finish(walk, node, serial)
    walk_leave(walk)
    core_lock(core)
    subscription.users -= 1
    core_unlock(core)


cdef void do_root(Walk *walk, Root *root) noexcept nogil:
    """A subject path whose way has changed, or whose tree missed events. Its subscription is held by the caller."""
    cdef Core *core = walk.core
    cdef uint32_t top, serial
    cdef bint rescan
    look_up(walk, root)
    core_lock(core)
    root.looking = False            # also when the container has ended
    rescan = root.rescan
    top = root.next_top if root.next_top else root.top
    serial = core.nodes[top].serial
    core_unlock(core)
    if rescan:
        if top and root.directory:
            rescan_tree(walk, root, top, serial)
        core_lock(core)
        if root.rescan:
            root.rescan = False
            core.repairing -= 1
            fence_place(core)       # the reader ends the repair when it comes by
        core_unlock(core)
    walk_leave(walk)
    core_lock(core)
    root.subscription.users -= 1
    core_unlock(core)


cdef void rescan_tree(Walk *walk, Root *root, uint32_t top, uint32_t serial) noexcept nogil:
    """List every directory of a tree again. Paced by the reader, so that this feeds no further overflow."""
    cdef Core *core = walk.core
    cdef Job job
    cdef int fd = node_open(walk, top, serial), wd = -1, count = 0
    if fd < 0:
        return
    walk.rescan = True
    core_lock(core)
    if node_is(core, top, serial):
        wd = core.nodes[top].wd
        expect_echoes(walk, wd, -1, NULL)
        rescan_window(core, top)
    core_unlock(core)
    chain_push(walk, top, serial, fd)
    if wd >= 0:
        list_directory(walk, top, serial, fd, wd)
    while walk.stack_count and not load_int(&core.stopping):
        walk.stack_count -= 1
        job = walk.stack[walk.stack_count]
        step(walk, job.node, job.serial)
        count += 1
        if count % PACE == 0:
            wait_for_reader(core)
    walk.stack_count = 0
    walk.rescan = False


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
        passed = core.fence_passed >= fence
        core_unlock(core)


# ---- links through ..data

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
    swap.names[swap.count].size = <unsigned char>strlen(name)
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
    """List the links that go through ..data; the reader reports them. Its subscription is held by the caller."""
    cdef Core *core = walk.core
    cdef Root *root
    cdef uint32_t parent
    cdef long size
    cdef int fd = -1, reading = -1
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
        if size <= 0:
            break
        find_links(walk, reading, swap, walk.entries, size)
    if reading >= 0:
        close(reading)
    if fd >= 0:
        close(fd)
    walk_leave(walk)
    core_lock(core)
    swap.fence = fence_place(core)
    end_listing(walk, swap.fence)
    core_unlock(core)


cdef void end_listing(Walk *walk, uint64_t fence) noexcept nogil:
    cdef Echo *echo = walk.core.echoes
    while echo != NULL:
        if echo.fence == 0 and echo.walk == walk:
            echo.fence = fence
        echo = echo.next


# ---- the thread

cdef bint remove_watches(Core *core) noexcept nogil:
    """Give some unused watches back to the kernel; a few at a time, since each leaves an event in the queue."""
    cdef WdEntry *entry
    cdef int count = 0
    cdef int wd
    while core.removal_count and count < REMOVALS:
        core.removal_count -= 1
        wd = core.removals[core.removal_count]
        entry = wd_find(core, wd)
        if entry != NULL and entry.first == 0 and not entry.mask & ANCHORED:     # not in use again meanwhile
            wd_forget(core, wd)
            inotify_rm_watch(core.inotify_fd, wd)
        count += 1
    return core.removal_count > 0


cdef Swap *next_swap(Core *core) noexcept nogil:
    cdef Swap *swap = core.swaps
    while swap != NULL and swap.taken:
        swap = swap.next
    return swap


cdef bint work_once(Walk *walk) noexcept nogil:
    """Take and do one piece of work, called and left with the lock held. False when there was none."""
    cdef Core *core = walk.core
    cdef Job job
    cdef Root *root
    cdef Subscription *subscription
    cdef Swap *swap
    cdef bint more
    if core.root_first != NULL:
        root = core.root_first
        core.root_first = root.next_queued
        if core.root_first == NULL:
            core.root_last = NULL
        root.queued = False
        root.looking = True
        root.subscription.users += 1
        pthread_mutex_unlock(&core.data)
        do_root(walk, root)
    elif core.job_count:
        job = core.jobs[core.job_first]
        core.job_first = (core.job_first + 1) % core.job_capacity
        core.job_count -= 1
        pthread_mutex_unlock(&core.data)
        do_job(walk, job.node, job.serial)
    elif next_swap(core) != NULL:
        swap = next_swap(core)
        swap.taken = True
        subscription = NULL
        if node_is(core, swap.node, swap.serial):
            subscription = core.nodes[swap.node].root.subscription
            subscription.users += 1
        pthread_mutex_unlock(&core.data)
        do_swap(walk, swap)
        core_lock(core)
        if subscription != NULL:
            subscription.users -= 1
        core_unlock(core)
    elif core.removal_count:
        more = remove_watches(core)
        pthread_mutex_unlock(&core.data)
        if more:
            usleep(200)
    else:
        return False
    pthread_mutex_lock(&core.data)
    return True


cdef void *walker(void *argument) noexcept nogil:
    """The life of the walker thread: what the reader found changed, and watches that nobody uses any more."""
    cdef Core *core = <Core *>argument
    cdef Walk walk
    cdef int error = walk_init(&walk, core)
    pthread_mutex_lock(&core.data)
    while not error and not core.stopping:
        core.working += 1
        while not core.stopping and work_once(&walk):
            walk.error = 0
        core.working -= 1
        if not core.stopping:
            pthread_cond_wait(&core.work, &core.data)
    pthread_mutex_unlock(&core.data)
    walk_free(&walk)
    return NULL
