# cython: language_level=3, boundscheck=False, wraparound=False
"""What a look-up of a guarded path has found goes to its guard; what it stood for before is reached once more.

A mark can only be taken away through the file, and nothing of a container is kept open. So the file is opened again by
the place where it was, and left alone when another one is there.
"""

from libc.stdio cimport snprintf
from libc.string cimport memchr, memcmp, memcpy, strlen, strrchr

from argusd.engine.entering cimport open_name, open_plain_path
from argusd.engine.mounts cimport next_mount, read_mounts
from argusd.engine.walk cimport walk_enter
from argusd.guarding.check cimport guarded_check
from argusd.guarding.guards cimport Guarded, guarded_add, guarded_drop, guarded_settle, is_file
from argusd.guarding.table cimport FOLDER, ITSELF, NAME, Entry
from argusd.includes.linux cimport (
    AT_EMPTY_PATH,
    STATX_TYPE,
    S_ISDIR,
    close,
    readlink,
    readlinkat,
    statx,
    statx_t,
)


cdef enum:
    PATH_SIZE = 4096


cdef const char *below_root(Walk *walk, const Entry *entry) noexcept nogil:
    """The path of an entry's place from the container's root, which may be no root of its mount namespace; or NULL."""
    cdef char link[40]
    cdef char root[PATH_SIZE]
    cdef ssize_t size
    snprintf(link, sizeof(link), b"/proc/self/fd/%d", walk.entrance.root_fd)
    size = readlink(link, root, sizeof(root))
    if size == 1:
        size = 0                    # "/"
    if size < 0 or <size_t>size >= entry.place_size or memcmp(entry.place, root, <size_t>size) != 0:
        return NULL
    return entry.place + size + 1 if entry.place[size] == c'/' else NULL


cdef int open_entry(Walk *walk, const Entry *entry) noexcept nogil:
    """An O_PATH descriptor of what an entry is about, or -1."""
    cdef char path[PATH_SIZE]
    cdef char *name
    cdef const char *below = below_root(walk, entry)
    cdef int fd, directory
    if below == NULL:
        return -1
    memcpy(path, below, strlen(below) + 1)
    if entry.kind != ITSELF:
        fd = open_plain_path(&walk.entrance, path)
    else:
        name = strrchr(path, c'/')
        if name == NULL:
            fd = open_name(&walk.entrance, walk.entrance.root_fd, path)
        else:
            name[0] = 0
            fd = open_plain_path(&walk.entrance, path)
            name += 1
            if fd >= 0:
                directory = fd
                fd = open_name(&walk.entrance, directory, name)
                close(directory)
    if fd >= 0 and not is_file(entry, fd):
        close(fd)
        fd = -1
    return fd if fd >= 0 else -1


cdef void drop(Walk *walk, Root *root, Entry *entry) noexcept nogil:
    """Let go of what a path does not stand for any more."""
    cdef Entry *after
    cdef int fd
    while entry != NULL:
        after = entry.next
        fd = open_entry(walk, entry) if walk != NULL and walk.root == root else -1
        guarded_drop(&root.guarded, entry, fd)
        if fd >= 0:
            close(fd)
        entry = after


cdef const char *mounted_name(const char *point, size_t size, const Buffer *real) noexcept nogil:
    """The name in a directory on which something is mounted, NULL when the mount point is elsewhere."""
    cdef size_t begin = real.size + 1 if real.size else 0       # of the slash behind the directory
    if (size < begin + 2 or point[begin] != c'/' or memchr(point + begin + 1, c'/', size - begin - 1) != NULL
            or (real.size and memcmp(point + 1, real.data, real.size) != 0)):
        return NULL
    return point + begin + 1


cdef int guard_mounted(Walk *walk, Root *root, const Finding *finding) noexcept nogil:
    """Guard what is mounted on names in a guarded directory; 0 or an errno."""
    cdef char point[PATH_SIZE + 1]
    cdef const char *name
    cdef size_t size, at = 0
    cdef int fd, error = 0
    if not read_mounts(walk, root.subscription.place.pid):
        return 0
    while not error and next_mount(walk, &at, point, &size):
        point[size] = 0
        name = mounted_name(point, size, finding.real)
        fd = open_name(&walk.entrance, finding.fd, name) if name != NULL else -1
        if fd >= 0:
            error = guarded_add(&root.guarded, ITSELF, fd, root.path, name, NULL)
            close(fd)
    return error


cdef int open_volume(Walk *walk, int directory) noexcept nogil:
    """The directory in which the files of a Kubernetes volume really are, or -1: its ..data links to it."""
    cdef char target[256]
    cdef statx_t status
    cdef ssize_t size = -1
    cdef int fd = open_name(&walk.entrance, directory, b"..data")
    if fd >= 0:
        size = readlinkat(fd, b"", target, sizeof(target))
        close(fd)
    if size <= 0 or size >= <ssize_t>sizeof(target) or memchr(target, c'/', <size_t>size) != NULL:
        return -1
    target[size] = 0
    fd = open_name(&walk.entrance, directory, target)
    if fd >= 0 and (statx(fd, b"", AT_EMPTY_PATH, STATX_TYPE, &status) != 0 or not S_ISDIR(status.stx_mode)):
        close(fd)
        fd = -1
    return fd


cdef int guard_volume(Walk *walk, Root *root, const Finding *finding) noexcept nogil:
    """Guard what the links in an atomic volume lead to, as the children of the directory that they seem to be."""
    cdef int error, fd = open_volume(walk, finding.fd)
    if fd < 0:
        return 0
    error = guarded_add(&root.guarded, FOLDER, fd, root.path, NULL, NULL)
    close(fd)
    return error


cdef int guard_root(Walk *walk, Root *root, const Finding *finding) noexcept nogil:
    """Guard what the path stands for now; 0 or an errno, with root.guarded.guard.step."""
    cdef Guarded *guarded = &root.guarded
    cdef int error = 0
    if finding.fd >= 0:
        error = guarded_add(guarded, FOLDER if finding.directory else ITSELF, finding.fd, root.path, NULL, NULL)
    if not error and finding.fd >= 0 and finding.directory:
        error = guard_mounted(walk, root, finding)
        if not error:
            error = guard_volume(walk, root, finding)
    elif not error and finding.parent_fd >= 0:
        error = guarded_add(guarded, NAME, finding.parent_fd, root.path, NULL, finding.name)
    drop(walk, root, guarded_settle(guarded, error == 0))
    if not error and walk.initial and finding.fd >= 0:
        error = guarded_check(guarded, finding.fd)
    return error


cdef void unguard_root(Walk *walk, Root *root) noexcept nogil:
    """The end of a guard: its marks are taken away as far as they can be reached, with NULL not at all."""
    cdef Entry *old = root.guarded.entries
    root.guarded.entries = NULL
    if walk != NULL:
        walk_enter(walk, root)
    drop(walk, root, old)
