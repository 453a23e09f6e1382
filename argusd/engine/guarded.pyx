# cython: language_level=3, boundscheck=False, wraparound=False
"""What a look-up of a guarded path has found goes to its guard; what it stood for before is reached once more.

A mark can only be taken away through the file, and nothing of a container is kept open. So the file is opened again by
the place where it was, and left alone when another one is there.
"""

from libc.stdint cimport uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcmp, memcpy, strlen, strrchr

from argusd.engine.entering cimport open_name, open_plain_path
from argusd.engine.walk cimport walk_enter
from argusd.guarding.guards cimport guarded_check, guarded_drop, guarded_take
from argusd.guarding.table cimport ITSELF, Entry
from argusd.includes.linux cimport AT_EMPTY_PATH, STATX_INO, close, readlink, statx, statx_t


cdef enum:
    PATH_SIZE = 4096


cdef bint is_entry(int fd, const Entry *entry) noexcept nogil:
    cdef statx_t status
    return (statx(fd, b"", AT_EMPTY_PATH, STATX_INO, &status) == 0 and status.stx_ino == entry.inode
            and (<uint64_t>status.stx_dev_major << 32 | status.stx_dev_minor) == entry.device)


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
    if fd >= 0 and not is_entry(fd, entry):
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


cdef int guard_root(Walk *walk, Root *root, const Finding *finding) noexcept nogil:
    """Guard what the path stands for now; 0 or an errno, with root.guarded.guard.step."""
    cdef Entry *old = NULL
    cdef int error = guarded_take(&root.guarded, finding, &old)
    drop(walk, root, old)
    if not error and walk.initial:
        error = guarded_check(&root.guarded, finding)
    return error


cdef void unguard_root(Walk *walk, Root *root) noexcept nogil:
    """The end of a guard: its marks are taken away as far as they can be reached, with NULL not at all."""
    cdef Entry *old = root.guarded.entries
    root.guarded.entries = NULL
    if walk != NULL:
        walk_enter(walk, root)
    drop(walk, root, old)
