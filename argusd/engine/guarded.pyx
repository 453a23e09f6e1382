# cython: language_level=3, boundscheck=False, wraparound=False
"""What a look-up of a guarded path has found goes to its guard."""

from libc.errno cimport EAGAIN, EMFILE, ENFILE, ENOMEM, ENOSPC, ENXIO, EOPNOTSUPP, EXDEV
from libc.string cimport memchr, memcmp, strlen

from argusd.engine.core cimport NOTICE_FOREIGN, NOTICE_UNGUARDED, core_lock, core_unlock
from argusd.engine.entering cimport open_name
from argusd.engine.home cimport guard_add, guard_check, guard_settle
from argusd.engine.mounts cimport next_mount, read_all_mounts, read_mounts
from argusd.engine.work cimport notice_push_path
from argusd.guarding.guards cimport Guarded, guarded_look
from argusd.guarding.table cimport FOLDER, ITSELF, NAME
from argusd.guarding.vetting cimport vetting_lists
from argusd.includes.linux cimport AT_EMPTY_PATH, STATX_TYPE, S_ISDIR, close, readlinkat, statx, statx_t


cdef enum:
    PATH_SIZE = 4096


cdef const char *mounted_name(const char *point, size_t size, const Buffer *real) noexcept nogil:
    """The name in a directory on which something is mounted, NULL when the mount point is elsewhere."""
    cdef size_t begin = real.size + 1 if real.size else 0       # of the slash behind the directory
    if (size < begin + 2 or point[begin] != c'/' or memchr(point + begin + 1, c'/', size - begin - 1) != NULL
            or (real.size and memcmp(point + 1, real.data, real.size) != 0)):
        return NULL
    return point + begin + 1


cdef void tell_mounted(Walk *walk, Root *root, int error, const char *point) noexcept nogil:
    """What is mounted on a name in a guarded directory cannot be guarded."""
    core_lock(walk.core)
    notice_push_path(walk.core, NOTICE_UNGUARDED, root.subscription.number, error, root.guarded.guard.step, point)
    core_unlock(walk.core)


cdef void tell_foreign(Walk *walk, Root *root) noexcept nogil:
    """The path leads, by a link, to what the container only sees of the node. That is told once."""
    if root.guarded.foreign_told:
        return
    root.guarded.foreign_told = True
    core_lock(walk.core)
    notice_push_path(walk.core, NOTICE_FOREIGN, root.subscription.number, EXDEV, 0, root.path)
    core_unlock(walk.core)


cdef void have_mounts(Walk *walk, Guarded *guarded, int pid) noexcept nogil:
    """Have the container's mounts in walk.mounts, that of its root included, and the guard know of them.

    Where that is no mount of its own (a process that called chroot(2)), only the whole namespace lists it.
    """
    cdef bint known = read_mounts(walk, pid), above
    above = known and not vetting_lists(walk.entrance.root_fd, walk.mounts.data, walk.mounts.size)
    if above:
        known = read_all_mounts(walk, pid)
    guarded_look(guarded, walk.entrance.root_fd, walk.mounts.data if known else NULL, walk.mounts.size, above)


cdef const char *below_place(const Root *root, const char *point, size_t *size) noexcept nogil:
    """A mount point as the container's root sees it."""
    cdef size_t begin = strlen(root.guarded.vetting.place)
    if memcmp(point, root.guarded.vetting.place, min(begin, size[0])) != 0 or size[0] <= begin:
        begin = size[0]
    size[0] -= begin
    return point + begin


cdef int guard_mounted(Walk *walk, Root *root, const Finding *finding) noexcept nogil:
    """Guard what is mounted on names in a guarded directory; 0 or an errno."""
    cdef char point[PATH_SIZE + 1]
    cdef const char *seen
    cdef const char *name
    cdef size_t size, at = 0
    cdef int fd, error = 0
    while not error and next_mount(walk, &at, point, &size):
        point[size] = 0
        seen = below_place(root, point, &size)
        name = mounted_name(seen, size, finding.real)
        fd = open_name(&walk.entrance, finding.fd, name) if name != NULL else -1
        if fd >= 0:
            error = guard_add(walk.twin, &root.guarded, ITSELF, fd, root.path, name, NULL)
            close(fd)
        if error == EXDEV:
            tell_foreign(walk, root)
            error = 0
        elif error and not is_short(error):
            if walk.initial and error != ENXIO:
                tell_mounted(walk, root, error, seen)
            error = 0               # a device in "/dev", /proc in "/", for instance: the rest is guarded all the same
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
    error = guard_add(walk.twin, &root.guarded, FOLDER, fd, root.path, NULL, NULL)
    close(fd)
    return error


cdef bint is_short(int error) noexcept nogil:
    """Does that say that something has run out, and nothing about the file?"""
    return error == ENOMEM or error == ENOSPC or error == EMFILE or error == ENFILE


cdef bint says_nothing(int error) noexcept nogil:
    """Is that no reason to let go of what was guarded?

    Who may mount could have a guard let go by mounting what cannot be guarded over its path, if only for a moment.
    """
    return is_short(error) or error == EOPNOTSUPP or error == EAGAIN


cdef int guard_root(Walk *walk, Root *root, const Finding *finding) noexcept nogil:
    """Guard what the path stands for now; 0 or an errno, with root.guarded.guard.step."""
    cdef Guarded *guarded = &root.guarded
    cdef int error = 0, further = 0, step = 0
    have_mounts(walk, guarded, root.subscription.place.pid)
    if finding.fd >= 0:
        error = guard_add(walk.twin, guarded, FOLDER if finding.directory else ITSELF, finding.fd, root.path, NULL,
                          NULL)
    if finding.fd >= 0 and finding.directory:
        if not error:
            error = guard_mounted(walk, root, finding)
        if not error:
            error = guard_volume(walk, root, finding)
    step = guarded.guard.step
    if finding.parent_fd >= 0 and not (finding.fd >= 0 and finding.directory):
        further = guard_add(walk.twin, guarded, NAME, finding.parent_fd, root.path, NULL, finding.name)
    if error == EXDEV or further == EXDEV:
        tell_foreign(walk, root)
        error = 0 if error == EXDEV else error
        further = 0 if further == EXDEV else further
    if error:
        guarded.guard.step = step
    guard_settle(walk.twin, guarded, not says_nothing(error) and not says_nothing(further))
    error = error or further
    if not error and walk.initial and finding.fd >= 0:
        error = guard_check(walk.twin, guarded, finding.fd)
    return error
