# cython: language_level=3, boundscheck=False, wraparound=False
"""What the responder asks the kernel about an event, all of it without waiting.

Facts about permission events that shape this file:

* An event brings a descriptor of the file and the number of the process, which waits and so keeps its number. It does
  not say which mark it is owed to: of a child of a marked directory the directory has to be found out.
* The link of a descriptor in /proc/self/fd tells the name by which the file was opened, in the mount namespace in which
  it was opened. Reading it opens nothing, and takes 2 us where the answer takes 45; by its path in /proc, which is
  gone anew each time, it takes 4 when the processor has done something else meanwhile.
* Where that is not a place that is guarded, because a host process or another container sees the same directory
  elsewhere, the path is looked up from the root of the process, or from that of the container through whose mount it
  was opened, by names that the kernel has in its cache (RESOLVE_CACHED, Linux 5.12) and with O_PATH: no file system is
  asked, nothing is opened, no event is made.
* What is mounted on a name is asked for as a child of the directory that it has in its file system, not of the one in
  which it is mounted, and of the former nothing is told. So a look-up of a name does not lead into mounts: else
  whoever may mount could give a child of a guarded directory another one. What is mounted is asked for because of a
  mark of its own, if there is one; else it is a child of something that is guarded, nobody knows of what.
"""

from libc.errno cimport EAGAIN, errno
from libc.stdio cimport snprintf
from libc.string cimport memcmp, memcpy, memset

from argusd.guarding.table cimport BUCKETS, LINKS, Entry, hash_text, inode_bucket
from argusd.includes.fanotify cimport (
    RESOLVE_CACHED,
    STATX_ATTR_MOUNT_ROOT,
    STATX_MNT_ID,
    mount_of,
)
from argusd.includes.linux cimport (
    AT_EMPTY_PATH,
    AT_STATX_DONT_SYNC,
    O_CLOEXEC,
    O_DIRECTORY,
    O_NOFOLLOW,
    O_PATH,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    RESOLVE_NO_XDEV,
    STATX_BTIME,
    STATX_INO,
    STATX_NLINK,
    STATX_TYPE,
    S_ISDIR,
    SYS_openat2,
    close,
    memrchr,
    open_how,
    openat,
    readlinkat,
    statx,
    statx_t,
    syscall,
)
from argusd.includes.pthread cimport load_int


cdef enum:
    LOOKUPS = 50                    # of a path, where a rename or a mount disturbs: each takes a microsecond or two


cdef uint64_t birth(const statx_t *status) noexcept nogil:
    """Inode numbers are used again; together with this they are not."""
    if not status.stx_mask & STATX_BTIME:
        return 0
    return <uint64_t>status.stx_btime.tv_sec * 1000000000 + status.stx_btime.tv_nsec


cdef bint ask_file(Asked *asked) noexcept nogil:
    """Find out which file it is. Of a file that is open already nothing is asked but the kernel."""
    cdef statx_t status
    if statx(asked.fd, b"", AT_EMPTY_PATH | AT_STATX_DONT_SYNC,
             STATX_INO | STATX_TYPE | STATX_NLINK | STATX_BTIME | STATX_MNT_ID, &status) != 0:
        return False
    asked.device = <uint64_t>status.stx_dev_major << 32 | status.stx_dev_minor
    asked.inode = status.stx_ino
    asked.born = birth(&status)
    asked.mount = mount_of(&status) if status.stx_mask & STATX_MNT_ID else 0
    asked.directory = S_ISDIR(status.stx_mode)
    asked.nameless = status.stx_nlink == 0
    asked.mounted = status.stx_attributes & STATX_ATTR_MOUNT_ROOT != 0
    return True


cdef ssize_t read_link(Group *group, int fd, char *text) noexcept nogil:
    """What the link of a descriptor says. It is kept open: the kernel gives the same few numbers again and again."""
    cdef char name[16]
    snprintf(name, sizeof(name), b"%d", fd)
    if fd < LINKS and group.links[fd] == 0:
        group.links[fd] = openat(group.links_fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC) + 1
    if fd < LINKS and group.links[fd]:
        return readlinkat(group.links[fd] - 1, b"", text, TEXT)
    return readlinkat(group.links_fd, name, text, TEXT)


cdef bint ask_name(Group *group, Asked *asked) noexcept nogil:
    """Read by what path the file was opened, and take it apart."""
    cdef const char *slash
    cdef ssize_t size = read_link(group, asked.fd, asked.text)
    if size <= 0 or size >= TEXT or asked.text[0] != c'/':
        return False
    if asked.nameless and size > 10 and memcmp(asked.text + size - 10, b" (deleted)", 10) == 0:
        size -= 10
    asked.text[size] = 0
    slash = <const char *>memrchr(asked.text, c'/', <size_t>size)
    asked.name = slash + 1
    asked.name_size = <size_t>(asked.text + size - asked.name)
    return asked.name_size > 0


cdef const Entry *at_place(Group *group, const Asked *asked) noexcept nogil:
    """Something in the directory that the path names, if that is a place that is known."""
    cdef size_t size = <size_t>(asked.name - asked.text) - 1
    cdef uint64_t hashed
    cdef const Entry *entry
    if size == 0:
        size = 1                    # the slash of the root directory itself
    hashed = hash_text(asked.text, size)
    entry = group.by_place[hashed & (BUCKETS - 1)]
    while entry != NULL:
        if (entry.place_hash == hashed and entry.place_size == size and entry.mount == asked.mount
                and memcmp(entry.place, asked.text, size) == 0):
            return entry
        entry = entry.next_by_place
    return NULL


cdef int look_up(int directory, const char *path, int flags, uint64_t resolve) noexcept nogil:
    cdef open_how how
    cdef long fd = -1
    cdef int _attempt
    memset(&how, 0, sizeof(how))
    how.flags = <unsigned long long>(O_PATH | O_CLOEXEC | O_NOFOLLOW | flags)
    how.resolve = RESOLVE_CACHED | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | resolve
    for _attempt in range(LOOKUPS):
        fd = syscall(SYS_openat2, directory, path, &how, sizeof(how))
        if fd >= 0 or errno != EAGAIN:
            break
    return <int>fd


cdef bint is_child(int directory, const Asked *asked) noexcept nogil:
    """Does the name lead from there to the file that was opened? A lost name does not, but the mount is the same."""
    cdef statx_t status
    cdef bint same
    cdef int fd = -1
    if asked.nameless:
        return (statx(directory, b"", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_MNT_ID, &status) == 0
                and asked.mount != 0 and mount_of(&status) == asked.mount)
    fd = look_up(directory, asked.name, 0, RESOLVE_NO_XDEV)
    if fd < 0:
        return False
    same = (statx(fd, b"", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_INO, &status) == 0
            and status.stx_ino == asked.inode
            and (<uint64_t>status.stx_dev_major << 32 | status.stx_dev_minor) == asked.device)
    close(fd)
    return same


cdef size_t root_size(Group *group, int pid, const Asked *asked) noexcept nogil:
    """How many bytes of the path lead to the root of a process, which may be no root of its mount namespace."""
    cdef char path[32]
    cdef char root[TEXT]
    cdef ssize_t size
    snprintf(path, sizeof(path), b"%d/root", pid)
    size = readlinkat(group.proc_fd, path, root, sizeof(root))
    if size <= 1 or memcmp(root, asked.text, <size_t>size) != 0 or asked.text[size] != c'/':
        return 0
    return <size_t>size


cdef bint take_parent(Asked *asked, int fd) noexcept nogil:
    """Take an O_PATH descriptor of the directory."""
    cdef statx_t status
    if statx(fd, b"", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_INO | STATX_BTIME, &status) != 0:
        close(fd)
        return False
    asked.parent_device = <uint64_t>status.stx_dev_major << 32 | status.stx_dev_minor
    asked.parent_inode = status.stx_ino
    asked.parent_born = birth(&status)
    asked.parent_fd = fd
    return True


cdef bint from_root(Group *group, int pid, int root, Asked *asked) noexcept nogil:
    """Look the directory up below the root of a process; True when it is there."""
    cdef char directory[TEXT + 16]
    cdef size_t begin = root_size(group, pid, asked), size
    cdef int fd
    size = <size_t>(asked.name - asked.text) - begin
    memcpy(directory, asked.text + begin, size)
    directory[size] = c'.'
    directory[size + 1] = 0
    fd = look_up(root, directory, O_DIRECTORY, RESOLVE_IN_ROOT)
    if fd < 0:
        return False
    if is_child(fd, asked):
        return take_parent(asked, fd)
    close(fd)
    return False


cdef bint from_process(Group *group, int pid, Asked *asked) noexcept nogil:
    """Likewise, with the root of the process still to be opened."""
    cdef char path[32]
    cdef bint found
    cdef int root
    if pid <= 0:
        return False
    snprintf(path, sizeof(path), b"%d/root", pid)
    root = openat(group.proc_fd, path, O_PATH | O_DIRECTORY | O_CLOEXEC)
    if root < 0:
        return False
    found = from_root(group, pid, root, asked)
    close(root)
    return found


cdef int init_on(Group *group, uint64_t mount) noexcept nogil:
    """The init of a container that has something on that mount guarded; 0 when there is none."""
    cdef const Entry *entry
    cdef int i
    if mount == 0:
        return 0
    for i in range(BUCKETS):
        entry = group.by_inode[i]
        while entry != NULL:
            if entry.mount == mount:
                return entry.subject.init
            entry = entry.next_by_inode
    return 0


cdef bint from_above(Asked *asked) noexcept nogil:
    """Of a directory, unless it is mounted, the parent is always told."""
    cdef int fd = look_up(asked.fd, b"..", O_DIRECTORY, RESOLVE_NO_XDEV)
    return fd >= 0 and take_parent(asked, fd)


cdef bint is_marked(Group *group, const Asked *asked) noexcept nogil:
    """Has it a mark of its own, or had it one that may still be there?"""
    cdef uint32_t bucket = inode_bucket(asked.device, asked.inode)
    cdef const Entry *entry = group.by_inode[bucket]
    while entry != NULL:
        if entry.inode == asked.inode and entry.device == asked.device:
            return True
        entry = entry.next_by_inode
    return load_int(&group.strays_at[bucket]) > 0


cdef void ask_parent(Group *group, Asked *asked) noexcept nogil:
    """Find out in which directory the file was opened, and by which name."""
    cdef const Entry *entry
    if asked.parent != PARENT_UNASKED:
        return
    asked.parent = PARENT_UNKNOWN
    if asked.mounted:
        if is_marked(group, asked):
            asked.parent = PARENT_NONE
        return
    if not ask_name(group, asked):
        return
    if asked.directory and from_above(asked):
        asked.parent = PARENT_KNOWN
        return
    entry = at_place(group, asked)
    if entry != NULL:
        asked.parent_device, asked.parent_inode, asked.parent_born = entry.device, entry.inode, entry.born
        asked.parent = PARENT_KNOWN
        return
    if from_process(group, asked.pid, asked) or from_process(group, init_on(group, asked.mount), asked):
        asked.parent = PARENT_KNOWN
