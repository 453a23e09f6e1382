# cython: language_level=3, boundscheck=False, wraparound=False
"""followMove: the path that a subject has now, read from the descriptor that is kept of it."""

from libc.errno cimport ENAMETOOLONG, errno
from libc.stdio cimport snprintf
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, strncmp

from argusd.engine.core cimport NOTICE_BEYOND
from argusd.engine.opening cimport place_open
from argusd.engine.work cimport notice_push
from argusd.includes.linux cimport AT_EMPTY_PATH, AT_STATX_DONT_SYNC, STATX_NLINK, close, readlink, statx, statx_t


cdef bint is_deleted(const Root *root, const char *text, size_t size) noexcept nogil:
    """Is this the link text of a deleted file? A file may also have a name that ends like that.

    One that lost the subject's path but has other names is told by the events: its text says nothing about those.
    """
    cdef statx_t status
    if size <= 10 or memcmp(text + size - 10, b" (deleted)", 10) != 0:
        return False
    if root.top == 0 or root.left:
        return True
    return statx(root.follow_fd, b"", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_NLINK, &status) != 0 or (
        status.stx_nlink == 0)


cdef void go_beyond(Core *core, Root *root) noexcept nogil:
    """A followed file has no path that can be told or looked up: it is reported under its last one, and this once."""
    if not root.beyond and root.top:
        root.beyond = True
        notice_push(core, NOTICE_BEYOND, root.subscription.number, ENAMETOOLONG, 0, root.top)


cdef bint follow(Core *core, Root *root) noexcept nogil:
    """Give a followMove subject the path that its descriptor has now; False when that is the one it had.

    True also when it has one that is too long: then it keeps the last, and is not looked for.
    """
    cdef char link[40]
    cdef char target[4096]
    cdef char top[4096]
    cdef ssize_t size, top_size
    cdef int fd = place_open(root.subscription.place)
    cdef char *path
    if fd < 0:
        return False
    snprintf(link, sizeof(link), b"/proc/self/fd/%d", fd)
    top_size = readlink(link, top, sizeof(top))
    close(fd)
    snprintf(link, sizeof(link), b"/proc/self/fd/%d", root.follow_fd)
    size = readlink(link, target, sizeof(target))
    if size < 0 and errno == ENAMETOOLONG:
        go_beyond(core, root)
        return root.beyond
    root.beyond = False
    if size <= 0 or top_size <= 0 or target[0] != c'/':
        return False
    if top_size == 1:
        top_size = 0
    if size <= top_size or strncmp(target, top, <size_t>top_size) != 0 or target[top_size] != c'/':
        return False                        # outside of the container's root: keep the last path inside
    if is_deleted(root, target, <size_t>size):
        return False
    size -= top_size
    if <size_t>size == root.path_size and memcmp(target + top_size, root.path, <size_t>size) == 0:
        return False
    path = <char *>malloc(<size_t>size + 1)
    if path == NULL:
        return False
    memcpy(path, target + top_size, <size_t>size)
    path[size] = 0
    free(root.path)
    root.path = path
    root.path_size = <size_t>size
    core.generation += 1
    return True
