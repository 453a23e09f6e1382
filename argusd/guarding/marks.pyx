# cython: language_level=3, boundscheck=False, wraparound=False
"""The kernel's marks.

Facts about marks that shape this file:

* A mark belongs to an inode and a group, and its mask is the union of all that was added.
* A mark dies with its inode, and when the file system is unmounted.
* A mark that is taken away while a process waits for an answer about its file stays in the kernel's list, dead, until
  that process is answered. Everybody else who opens the file meanwhile is let through by that group, even if the
  directory is marked, too (fsnotify_prepare_user_wait() fails on a dead mark). In C, with a directory's mark that
  stands and a file's that comes and goes, about half of all opens passed. The other way round none did.
* So the mark of a guard that ends is not taken away. It becomes a stray: what comes of it is allowed, and tells where
  it is. The reporter then has it removed, unless the directory above is marked, whose events it adds nothing to. When
  nothing is guarded any more, all marks are flushed. To reach the file of a stray by its path would not do anyway: it
  may have been moved, its container may have ended.
* A directory's mark covers what is opened in it by FAN_EVENT_ON_CHILD, and directories by FAN_ONDIR. What is mounted
  on a name in it is no child of it.
* procfs refuses permission marks (EINVAL); so do file systems without a way to notify.
* An O_PATH descriptor is marked through its link in /proc/self/fd, which leads to it wherever it is.
"""

from libc.errno cimport ENOMEM, errno
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free

from argusd.guarding.asking cimport PARENT_KNOWN, ask_parent
from argusd.guarding.marker cimport order
from argusd.guarding.table cimport BUCKETS, ITSELF, STRAYS, Entry, Stray, inode_bucket
from argusd.includes.fanotify cimport (
    FAN_ACCESS_PERM,
    FAN_EVENT_ON_CHILD,
    FAN_MARK_ADD,
    FAN_MARK_FLUSH,
    FAN_MARK_REMOVE,
    FAN_ONDIR,
    FAN_OPEN_PERM,
    fanotify_mark,
)
from argusd.includes.linux cimport (
    AT_EMPTY_PATH,
    AT_STATX_DONT_SYNC,
    F_DUPFD_CLOEXEC,
    STATX_INO,
    close,
    fcntl,
    statx,
    statx_t,
    write,
)
from argusd.includes.pthread cimport add_int, load_int, pthread_mutex_lock, pthread_mutex_unlock, store_int, swap_int


cdef enum:
    OPENS = 0                       # what guards need of a mark, as an index
    ACCESSES = 1
    CHILDREN = 2
    NEEDS = 3

cdef enum:
    TRIES = 1024                    # events that are looked at for a stray, since the last became one


cdef struct Mark:
    uint64_t device
    uint64_t inode
    uint32_t users[NEEDS]
    Mark *next


cdef inline bint needs(uint32_t bits, bint children, int need) noexcept nogil:
    return bits & FAN_OPEN_PERM if need == OPENS else bits & FAN_ACCESS_PERM if need == ACCESSES else children


cdef inline uint64_t mask_of(int need) noexcept nogil:
    return FAN_OPEN_PERM if need == OPENS else FAN_ACCESS_PERM if need == ACCESSES else FAN_EVENT_ON_CHILD


cdef int mark_change(Group *group, unsigned int how, int fd, uint64_t mask) noexcept nogil:
    """fanotify_mark(2), by the marker, which has the group's descriptor; 0 or an errno."""
    cdef char link[16]
    snprintf(link, sizeof(link), b"%d", max(fd, 0))     # to flush the marks any will do
    return 0 if fanotify_mark(group.fd, how, mask, group.links_fd, link) == 0 else errno


cdef void change_now(Group *group) noexcept nogil:
    group.order_error = mark_change(group, group.order_how, group.order_file, group.order_mask)


cdef int order_mark(Group *group, unsigned int how, int fd, uint64_t mask) noexcept nogil:
    """Have the marker change a mark; 0 or an errno. With the lock held."""
    group.order_how, group.order_mask, group.order_error = how, mask, 0
    return order(group, change_now, fd) or group.order_error


cdef Mark **mark_link(Group *group, uint64_t device, uint64_t inode) noexcept nogil:
    cdef Mark **link = <Mark **>&group.marks[inode_bucket(device, inode)]
    while link[0] != NULL and (link[0].inode != inode or link[0].device != device):
        link = &link[0].next
    return link


cdef int mark_again(Group *group, int fd, uint32_t bits, bint children) noexcept nogil:
    """Set the mark of what is marked already: it may have been unmounted meanwhile. 0 or an errno."""
    cdef int error
    pthread_mutex_lock(&group.lock)
    error = add(group, fd, bits, children)
    pthread_mutex_unlock(&group.lock)
    return error


cdef int add(Group *group, int fd, uint32_t bits, bint children) noexcept nogil:
    """With the lock held."""
    return order_mark(group, FAN_MARK_ADD, fd, bits | FAN_ONDIR | (mask_of(CHILDREN) if children else 0))


cdef int mark_set(Group *group, int fd, uint64_t device, uint64_t inode, uint32_t bits, bint children) noexcept nogil:
    """Mark what is behind an O_PATH descriptor, for one guard more. 0 or an errno."""
    cdef Mark **link
    cdef Mark *mark
    cdef int need, error = 0
    pthread_mutex_lock(&group.lock)
    link = mark_link(group, device, inode)
    mark = link[0] if link[0] != NULL else <Mark *>calloc(1, sizeof(Mark))
    if mark == NULL:
        error = ENOMEM
    else:
        error = add(group, fd, bits, children)
        if link[0] == NULL and error:
            free(mark)
        elif not error:
            if link[0] == NULL:
                mark.device, mark.inode = device, inode
                link[0] = mark
                group.mark_count += 1
            for need in range(NEEDS):
                if needs(bits, children, need):
                    mark.users[need] += 1
    pthread_mutex_unlock(&group.lock)
    return error


cdef void count_stray(Group *group, uint64_t device, uint64_t inode, int by) noexcept nogil:
    """With the lock held."""
    cdef int *here = &group.strays_at[inode_bucket(device, inode)]
    store_int(&group.strays, max(0, load_int(&group.strays) + by))
    store_int(here, max(0, load_int(here) + by))


cdef void mark_drop(Group *group, int fd, uint64_t device, uint64_t inode, uint32_t bits,
                    bint children) noexcept nogil:
    """A guard needs a mark no more. With ``fd`` what nobody needs is taken from it, but not the mark itself."""
    cdef Mark **link
    cdef Mark *mark
    cdef uint64_t mask = 0
    cdef int need, i
    pthread_mutex_lock(&group.lock)
    link = mark_link(group, device, inode)
    mark = link[0]
    if mark != NULL:
        for need in range(NEEDS):
            if needs(bits, children, need) and mark.users[need]:
                mark.users[need] -= 1
                if mark.users[need] == 0:
                    mask |= mask_of(need)
        if not mark.users[OPENS] and not mark.users[ACCESSES] and not mark.users[CHILDREN]:
            link[0] = mark.next
            free(mark)
            group.mark_count -= 1
            count_stray(group, device, inode, 1)
            store_int(&group.tries, TRIES)
        elif mask and fd >= 0:
            order_mark(group, FAN_MARK_REMOVE, fd, mask)
    if group.mark_count == 0 and load_int(&group.strays):
        order_mark(group, FAN_MARK_FLUSH, -1, 0)
        store_int(&group.strays, 0)
        for i in range(BUCKETS):
            store_int(&group.strays_at[i], 0)
    pthread_mutex_unlock(&group.lock)


cdef void marks_free(Group *group) noexcept nogil:
    cdef Mark *mark
    cdef Mark *after
    cdef int i
    for i in range(BUCKETS):
        mark = <Mark *>group.marks[i]
        while mark != NULL:
            after = mark.next
            free(mark)
            mark = after

# ---- strays


cdef bint is_covered(Group *group, const Asked *asked) noexcept nogil:
    """Is the directory above guarded, or names in it? Then a mark of the file's own adds nothing."""
    cdef const Entry *entry = group.by_inode[inode_bucket(asked.parent_device, asked.parent_inode)]
    while entry != NULL:
        if entry.kind != ITSELF and entry.inode == asked.parent_inode and entry.device == asked.parent_device:
            return True
        entry = entry.next_by_inode
    return False


cdef void leave(Group *group, int fd, uint64_t parent_device, uint64_t parent_inode) noexcept nogil:
    """Leave a copy of a descriptor to the reporter, if there is room."""
    cdef Stray *stray
    cdef int i, copy
    for i in range(STRAYS):
        stray = &group.found[i]
        if load_int(&stray.left) == 0:
            copy = fcntl(fd, F_DUPFD_CLOEXEC, 0)
            if copy >= 0:
                stray.parent_device, stray.parent_inode = parent_device, parent_inode
                store_int(&stray.left, copy + 1)
            return


cdef void stray_found(Group *group, Asked *asked) noexcept nogil:
    """Nobody guards what was asked for: it has a stray mark, or the directory has. Called by the responder."""
    cdef unsigned long long one = 1
    if load_int(&group.strays) == 0 or load_int(&group.tries) <= 0:
        return
    add_int(&group.tries, -1)
    ask_parent(group, asked)
    if asked.parent != PARENT_KNOWN or is_covered(group, asked):
        return
    leave(group, asked.fd, asked.parent_device, asked.parent_inode)
    if asked.parent_fd >= 0:
        leave(group, asked.parent_fd, 0, 0)
    if swap_int(group.reporter_waits, 0):
        write(group.reporter_fd, &one, sizeof(one))


cdef bint strays_wait(Group *group) noexcept nogil:
    """Has the responder left any?"""
    cdef int i
    for i in range(STRAYS):
        if load_int(&group.found[i].left):
            return True
    return False


cdef bint which(int fd, const char *path, uint64_t *device, uint64_t *inode) noexcept nogil:
    cdef statx_t status
    if statx(fd, path, AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_INO, &status) != 0:
        return False
    device[0] = <uint64_t>status.stx_dev_major << 32 | status.stx_dev_minor
    inode[0] = status.stx_ino
    return True


cdef void take_away(Group *group, int fd, uint64_t parent_device, uint64_t parent_inode) noexcept nogil:
    """Take the mark of a stray away, unless it is used again or covered by the directory above. With the lock held."""
    cdef uint64_t mask = FAN_OPEN_PERM | FAN_ACCESS_PERM | FAN_ONDIR | FAN_EVENT_ON_CHILD, device, inode
    cdef const Mark *above
    if not which(fd, b"", &device, &inode):
        return
    if parent_inode == 0 and not which(fd, b"..", &parent_device, &parent_inode):
        return
    above = mark_link(group, parent_device, parent_inode)[0]
    if mark_link(group, device, inode)[0] == NULL and (above == NULL or above.users[CHILDREN] == 0):
        if mark_change(group, FAN_MARK_REMOVE, fd, mask) == 0:
            count_stray(group, device, inode, -1)


cdef void strays_clear(Group *group) noexcept nogil:
    """Have the marks taken away that were found to be of no use. Called by the reporter, which may wait."""
    if strays_wait(group):
        pthread_mutex_lock(&group.lock)
        order(group, strays_take, -1)
        pthread_mutex_unlock(&group.lock)


cdef void strays_take(Group *group) noexcept nogil:
    """Take them away: called by the marker, which has the descriptors, while the reporter holds the lock."""
    cdef Stray *stray
    cdef int i, fd
    for i in range(STRAYS):
        stray = &group.found[i]
        fd = load_int(&stray.left) - 1
        if fd >= 0:
            take_away(group, fd, stray.parent_device, stray.parent_inode)
            close(fd)
            store_int(&stray.left, 0)
