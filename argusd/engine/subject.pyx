# cython: language_level=3, boundscheck=False, wraparound=False
"""What a subject path stands for: looking it up step by step, and arming what is found.

Facts about subject paths that shape this file:

* A path can come to stand for another file by what happens at any of its steps: a directory on the way is moved, a
  symbolic link is re-pointed, the file itself is replaced by a rename. So a look-up goes step by step, watches each
  directory before it looks for the next name in it, and remembers the two as an anchor. An event at an anchor leads to
  another look-up; no change between the watch and the look can be missed.
* Every step opens one name with O_PATH, without following links; link targets are read and taken apart here, an
  absolute one beginning at the container's root. ``..`` goes back along the names that were really gone through, and
  stops at the root. So no link leads out of the container.
"""

from libc.errno cimport EAGAIN, ELOOP, ENAMETOOLONG, ENOENT, ENOMEM, ENOSPC, ENOTDIR, ESRCH, errno
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, memset, strcmp, strlen, strrchr

from argusd._records cimport Buffer, buffer_add, buffer_free
from argusd.engine.anchors cimport anchor_add, anchors_drop
from argusd.engine.directory cimport drain_stack, finish, wanted
from argusd.engine.core cimport (
    NODE_CREATED,
    NODE_FIRST,
    NOISY,
    NOTICE_UNGUARDED,
    Anchor,
    Core,
    Identity,
    core_lock,
    core_unlock,
    fence_if_needed,
    wd_attach,
    wd_stands,
    wd_stray,
)
from argusd.engine.entering cimport open_name, open_plain_path
from argusd.engine.guarded cimport Finding, guard_root
from argusd.engine.home cimport followed_close, followed_copy, followed_keep, followed_moved
from argusd.engine.listing cimport list_directory, listing_begin
from argusd.engine.opening cimport add_watch, barrier, identify, same_file, watch_any
from argusd.engine.starving cimport starve_root
from argusd.engine.tree cimport is_ignored, node_free_tree, node_new
from argusd.engine.walk cimport chain_push, is_absence, is_shortage, node_open, walk_enter
from argusd.engine.window cimport window_open
from argusd.engine.work cimport notice_push, root_push, root_unsettle
from argusd.includes.linux cimport (
    AT_EMPTY_PATH,
    IN_ATTRIB,
    IN_CREATE,
    IN_DELETE,
    IN_DELETE_SELF,
    IN_MOVED_FROM,
    IN_MOVED_TO,
    STATX_TYPE,
    close,
    readlinkat,
    statx,
    statx_t,
)

from argusd.includes.pthread cimport load_u64

cdef enum:
    ARMS_MAX = 8                    # times that a watch is asked for which goes in that very moment
    FOLLOWS_MAX = 16                # times in one look-up that a followed file is found to have moved on
    LINKS_MAX = 40                  # symbolic links in one look-up, as in the kernel
    STEPS_MAX = 1024                # names in one look-up, those of link targets included
    PATH_SIZE = 4096
    S_IFMT = 0o170000
    S_IFDIR = 0o040000
    S_IFLNK = 0o120000


cdef uint32_t STEP_EVENTS = IN_CREATE | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO


# Where a look-up has come to.
cdef struct Search:
    int fd                          # O_PATH descriptor of the directory reached, or of what was found
    int parent_fd                   # of the directory in which that was found by its name, or -1
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
    search.step_wd = search.parent_fd = -1
    search.directory = True
    search.fd = open_plain_path(&walk.entrance, b"")
    return search.fd >= 0 and not search.rest.failed


cdef void search_end(Search *search) noexcept nogil:
    if search.fd >= 0:
        close(search.fd)
    if search.parent_fd >= 0:
        close(search.parent_fd)
    buffer_free(&search.rest)
    buffer_free(&search.real)


cdef int go_to(Search *search, Walk *walk) noexcept nogil:
    """Open the directory of search.real again; 0 or an errno."""
    cdef int fd
    buffer_add(&search.real, b"", 1)
    search.real.size -= 1
    if search.real.failed:
        return ENOMEM
    close(search.fd)
    fd = open_plain_path(&walk.entrance, search.real.data)
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
    cdef Anchor *anchor
    cdef unsigned long long since = load_u64(&core.gone)
    cdef int error = 0, wd = add_watch(core, search.fd, STEP_EVENTS)
    if wd < 0:
        return -wd
    core_lock(core)
    if not wd_stands(core, wd, since):
        error = EAGAIN
    elif root.subscription.cancelled:
        wd_stray(core, wd, STEP_EVENTS)
    else:
        search.step_wd = wd
        memcpy(search.step_name, name, strlen(name) + 1)
        wd_attach(core, wd, STEP_EVENTS, 0)
        anchor = anchor_add(core, root, wd, name, strlen(name), last)
        if anchor == NULL:
            error = ENOMEM
        elif anchor.fresh:
            anchor.mark = <uint32_t>fence_if_needed(core)
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
    cdef int fd, tries = 0, error = EAGAIN
    while error == EAGAIN and tries < ARMS_MAX:
        error = anchor_here(search, walk, root, name, last)
        tries += 1
    if error:
        return error
    fd = open_name(&walk.entrance, search.fd, name)
    barrier(search.fd)              # what may have been seen early has its events before the mark behind the look-up
    settle_presence(walk.core, root, name, fd >= 0)
    if fd < 0:
        return -fd
    if statx(fd, b"", AT_EMPTY_PATH, STATX_TYPE, &status) != 0:
        error = errno
        close(fd)
        return error
    if (status.stx_mode & S_IFMT) == S_IFLNK:
        return go_link(search, walk, fd)
    if search.parent_fd >= 0:
        close(search.parent_fd)
    search.parent_fd = search.fd
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


cdef bint is_transient(int error) noexcept nogil:
    return is_shortage(error) or error == ENOSPC


# The watch of what a path was found to stand for, before the tree knows of it.
cdef struct Arms:
    uint32_t mask
    uint64_t born                   # a mark from before it was asked for
    unsigned long long since        # watches that had gone before it was
    int wd                          # or a negative errno
    int followed                    # number, at home, of a followMove subject's descriptor; later of the one before


cdef void arms_take(Walk *walk, Root *root, const Search *search, Arms *arms) noexcept nogil:
    """Ask the kernel to watch what was found. A file system may keep us waiting: without the lock."""
    cdef Core *core = walk.core
    arms.mask = wanted(root.subscription, search.directory and root.subscription.recursive)
    if not search.directory and arms.mask & IN_DELETE_SELF:
        arms.mask |= IN_ATTRIB      # tells whether a file that lost the path lives on under another name
    core_lock(core)
    arms.born, arms.since = fence_if_needed(core), core.gone
    core_unlock(core)
    arms.wd = watch_any(core, search.fd, arms.mask)
    if arms.wd >= 0 and root.subscription.follow_move:
        arms.followed = followed_keep(walk.twin, search.fd)


cdef void hold_followed(Root *root, Arms *arms, bint initial) noexcept nogil:
    cdef int *place = &root.follow_fd if initial else &root.next_follow_fd
    cdef int before = place[0]
    place[0] = arms.followed
    arms.followed = before


cdef uint32_t arm_found(Walk *walk, Root *root, Search *search, Arms *arms, int *error) noexcept nogil:
    """Take in the watch of what the path stands for.

    With the lock held; the new node, or 0 when it is the one watched already.
    """
    cdef Core *core = walk.core
    cdef bint tree = search.directory and root.subscription.recursive
    cdef uint32_t mask = arms.mask, node
    cdef int wd = arms.wd
    if wd >= 0 and not wd_stands(core, wd, arms.since):
        wd = -EAGAIN
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
    core.nodes[node].mark = <uint32_t>arms.born
    if walk.initial:
        core.nodes[node].flags |= NODE_FIRST
        root.top = node
    else:
        root.next_top = node
        root.unsure = True          # its events wait until its coming is reported
        if not same_file(&root.known, &root.found):
            core.nodes[node].flags |= NODE_CREATED
            if search.directory and root.subscription.guard == NULL:
                window_open(core, node)
    if root.subscription.follow_move:
        hold_followed(root, arms, walk.initial)
    if search.directory:
        root.subscription.directories += 1
    if search.directory and (tree or not walk.initial) and root.subscription.guard == NULL:
        listing_begin(walk, node, core.nodes[node].serial, wd, search.step_wd, search.step_name)
    return node


cdef void settle_own(Core *core, Root *root, const Search *search) noexcept nogil:
    """Note which of the names gone by is that of the file itself."""
    cdef Anchor *anchor
    core_lock(core)
    anchor = root.anchors
    while anchor != NULL:
        anchor.own = anchor.wd == search.step_wd and strcmp(anchor.name, search.step_name) == 0
        anchor = anchor.next_in_root
    core_unlock(core)


cdef uint32_t take_result(Walk *walk, Root *root, Search *search, const Identity *found, Arms *arms,
                          int *error) noexcept nogil:
    """Put what a look-up found, or that it found nothing, into the root. With the lock held; a node to be listed."""
    cdef Core *core = walk.core
    cdef uint32_t node = 0
    if is_transient(error[0]) or error[0] == EAGAIN:    # says nothing about the path: what was watched goes on
        root.found = root.known
        return 0
    memset(&root.found, 0, sizeof(Identity))
    if not error[0]:
        root.directory = search.directory
        root.real.size = 0
        buffer_add(&root.real, search.real.data, search.real.size)
        root.found = found[0]
        node = arm_found(walk, root, search, arms, error)
        if is_transient(error[0]) or error[0] == EAGAIN:
            root.found = root.known
    elif root.next_top:
        node_free_tree(core, root.next_top)
    if walk.initial:
        root.known = root.found
    anchors_drop(core, root, False)
    return node


cdef bint subject_is_ignored(const Root *root) noexcept nogil:
    cdef const char *name = strrchr(root.path, c'/') + 1
    return root.subscription.recursive and is_ignored(root.subscription, name, strlen(name))


cdef void make_loud(Walk *walk, Root *root, uint32_t node, uint32_t serial) noexcept nogil:
    """The last step of a first walk: the subject path itself gets the events that the walk would have caused."""
    cdef Core *core = walk.core
    cdef uint32_t mask = wanted(root.subscription, False)
    cdef unsigned long long since = load_u64(&core.gone)
    cdef int wd, fd = node_open(walk, node, serial)
    if fd < 0:
        return
    wd = add_watch(core, fd, mask)
    close(fd)
    core_lock(core)
    if wd >= 0 and wd_stands(core, wd, since):
        wd_stray(core, wd, mask)
    core_unlock(core)


cdef bint stays_beyond(Walk *walk, Root *root) noexcept nogil:
    """Is what the root follows where no path leads? Then what its last path stands for is not asked."""
    cdef Core *core = walk.core
    cdef bint beyond
    core_lock(core)
    beyond = root.beyond and root.follow_fd >= 0 and root.top != 0 and not root.subscription.cancelled
    if beyond:
        root.found = root.known
        anchors_drop(core, root, True)
        root_unsettle(core, root)
    core_unlock(core)
    return beyond


cdef bint is_missing(int error) noexcept nogil:
    """Does a path stand for nothing? Any other error says nothing about the path: what was guarded stays so."""
    return is_absence(error) or error == ENAMETOOLONG or error == ESRCH


cdef bint last_is_missing(const Search *search, int error) noexcept nogil:
    """Is only the last name of the path missing, from a directory that is there?"""
    cdef size_t at = search.at
    while search.rest.data[at] == c'/':
        at += 1
    return error == ENOENT and search.step_wd >= 0 and search.rest.data[at] == 0


cdef int hand_over(Walk *walk, Root *root, Search *search, int error) noexcept nogil:
    """Let the path's guard have what was found, or what is there of it; an errno if that is new, or 0."""
    cdef Finding finding
    cdef int before
    memset(&finding, 0, sizeof(finding))
    finding.fd = finding.parent_fd = -1
    finding.name, finding.real = search.step_name, &search.real
    if not error and search.directory:
        error = anchor_here(search, walk, root, b"..data", False)   # what it leads to is guarded, too
    if not error:
        finding.fd, finding.directory, finding.parent_fd = search.fd, search.directory, search.parent_fd
    elif last_is_missing(search, error) and not root.subscription.only_dir:
        finding.parent_fd = search.fd
    before = root.unguarded
    root.unguarded = guard_root(walk, root, &finding)
    return root.unguarded if root.unguarded != before and root.unguarded != EAGAIN else 0


cdef int search_root(Search *search, Walk *walk, Root *root) noexcept nogil:
    """Begin to look up the path of ``root``, and go as far as it leads; 0 or an errno."""
    cdef int error
    core_lock(walk.core)
    root.round += 1
    core_unlock(walk.core)
    if not search_begin(search, walk, root):
        return -search.fd if search.fd < 0 else ENOMEM
    error = search_path(search, walk, root)
    if not error:
        settle_own(walk.core, root, search)
    return error


cdef bint strayed(Walk *walk, Root *root, const Search *search, int error) noexcept nogil:
    """Is a followed file not where its path led, for it has moved on? Then the root has its path by now."""
    cdef Core *core = walk.core
    cdef Identity followed, found
    cdef bint moved
    cdef int fd
    if walk.initial or not root.subscription.follow_move:
        return False
    fd = followed_copy(walk.twin, core, root)
    if fd < 0:
        return False
    found.valid = False
    if not error:
        identify(search.fd, &found)
    moved = identify(fd, &followed) and not same_file(&followed, &found)
    close(fd)
    return moved and followed_moved(walk.twin, core, root)


cdef int look_up(Walk *walk, Root *root) noexcept nogil:
    """See what a subject path stands for, watch that, and walk it when it is another tree than before.

    0 or the errno that keeps the path from being watched for now; walk.error when the kernel has no watch left.
    """
    cdef Core *core = walk.core
    cdef Search search
    cdef Identity found
    cdef Arms arms
    cdef uint32_t node = 0, serial = 0
    cdef int wd = -1, tries = 0, unguarded = 0, error = walk_enter(walk, root)
    cdef bint tree
    if error or (not walk.initial and stays_beyond(walk, root)):
        return error
    error = search_root(&search, walk, root)
    while strayed(walk, root, &search, error):
        if tries == FOLLOWS_MAX:
            error = EAGAIN
            break
        search_end(&search)
        if stays_beyond(walk, root):
            return 0
        tries += 1
        error = search_root(&search, walk, root)
    if not error and root.subscription.only_dir and not search.directory:
        error = ENOTDIR
    if root.subscription.guard != NULL and (not error or is_missing(error)):
        unguarded = hand_over(walk, root, &search, error)
    memset(&arms, 0, sizeof(arms))
    arms.wd = arms.followed = -1
    if not error:
        identify(search.fd, &found)
        arms_take(walk, root, &search, &arms)
    core_lock(core)
    if root.subscription.cancelled:
        error = ESRCH
    else:
        node = take_result(walk, root, &search, &found, &arms, &error)
        if node:
            serial = core.nodes[node].serial
            wd = core.nodes[node].wd
        if walk.initial and error == EAGAIN:
            error = ENOENT              # it went in that moment: looked up again when this walk is over
            root.called = True
        if not walk.initial:
            root_unsettle(core, root)
            if error == EAGAIN:
                root_push(core, root)
            elif is_transient(error):
                starve_root(core, root, error)
            if unguarded:
                notice_push(core, NOTICE_UNGUARDED, root.subscription.number, unguarded, root.guarded.guard.step,
                            root.next_top if root.next_top else root.top)
    if arms.wd >= 0 and wd_stands(core, arms.wd, arms.since):
        wd_stray(core, arms.wd, arms.mask)          # unless it was taken in
    core_unlock(core)
    followed_close(walk.twin, arms.followed)
    if walk.initial and is_transient(error):
        walk.error = error
    tree = (node and search.directory and (root.subscription.recursive or not walk.initial)
            and root.subscription.guard == NULL)
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


cdef int arm_root(Walk *walk, Root *root) noexcept nogil:
    """The first look at a subject path. 0 or the errno that keeps it from being watched for now."""
    if subject_is_ignored(root):
        return 0
    return look_up(walk, root)
