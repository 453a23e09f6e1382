# cython: language_level=3, boundscheck=False, wraparound=False
"""A log file on disk: opened safely, rotated, and found again when somebody moves it away.

/tmp is open to everybody. A file there may have been planted, and so may a directory under the name of an older log. A
name that is taken by a directory is left out of the rotation. Nothing that could not be moved is ever written over:
when no name is left the file grows to what the older logs might have taken, and is full then.
"""

from libc.errno cimport EEXIST, EFBIG, ELOOP, ENOENT, errno
from libc.stdint cimport int64_t
from libc.stdio cimport rename, snprintf
from libc.stdlib cimport free

from argusd.includes.linux cimport (
    AT_SYMLINK_NOFOLLOW,
    O_APPEND,
    O_CLOEXEC,
    O_CREAT,
    O_EXCL,
    O_NOFOLLOW,
    O_NONBLOCK,
    O_WRONLY,
    S_ISDIR,
    S_ISREG,
    close,
    fstat,
    fstatat,
    ftruncate,
    geteuid,
    open,
    stat_t,
    unlink,
)

cdef enum:
    AT_FDCWD = -100
    NAME_MAX_BYTES = 4200
    RETRY_NS = 1000 * 1000 * 1000


cdef int adopt(LogFile *file, int fd) noexcept nogil:
    """Write to ``fd`` from now on; 0 or an errno."""
    cdef stat_t status
    cdef int failure
    if fstat(fd, &status) != 0:
        failure = errno
        close(fd)
        return failure
    if file.fd >= 0:
        close(file.fd)
    file.fd = fd
    file.device, file.inode, file.size = status.st_dev, status.st_ino, status.st_size
    file.open_again_ns, file.rotate_again_ns = 0, 0
    return 0


cdef int create(const char *path) noexcept nogil:
    return open(path, O_WRONLY | O_APPEND | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0o640)


cdef int file_open(LogFile *file) noexcept nogil:
    cdef stat_t status
    cdef int fd = open(file.path, O_WRONLY | O_APPEND | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC)
    if fd < 0 and errno == ELOOP:   # a symbolic link
        return EEXIST
    if fd < 0:
        fd = create(file.path)
        return adopt(file, fd) if fd >= 0 else errno
    if fstat(fd, &status) != 0 or not S_ISREG(status.st_mode) or status.st_uid != geteuid() or status.st_nlink != 1:
        close(fd)
        return EEXIST
    return adopt(file, fd)


cdef int file_follow(LogFile *file, int64_t now_ns) noexcept nogil:
    cdef stat_t status
    cdef int failure
    if fstatat(AT_FDCWD, file.path, &status, AT_SYMLINK_NOFOLLOW) == 0:
        if status.st_ino == file.inode and status.st_dev == file.device:
            return 0
    elif errno != ENOENT:
        return errno
    if now_ns < file.open_again_ns:
        return EEXIST
    failure = file_open(file)
    if failure:
        file.open_again_ns = now_ns + RETRY_NS
    return failure


cdef bint usable(const LogFile *file, int number, char *name) noexcept nogil:
    """Write the name of an older log; True if a file can be moved there."""
    cdef stat_t status
    snprintf(name, NAME_MAX_BYTES, b"%s.%d", file.path, number)
    if fstatat(AT_FDCWD, name, &status, AT_SYMLINK_NOFOLLOW) != 0:
        return errno == ENOENT
    return not S_ISDIR(status.st_mode)


cdef int make_room(LogFile *file) noexcept nogil:
    """Move the file and the older logs one name further; 0 or the errno of what could not be moved."""
    cdef char older[NAME_MAX_BYTES]
    cdef char newer[NAME_MAX_BYTES]
    cdef int number
    cdef bint any = False
    for number in range(file.backups, 0, -1):
        if not usable(file, number, newer):
            continue
        if any and rename(newer, older) != 0 and errno != ENOENT:
            return errno
        snprintf(older, sizeof(older), b"%s", newer)
        any = True
    if file.backups and not any:
        return EEXIST
    if not file.backups:
        return 0 if unlink(file.path) == 0 or errno == ENOENT else errno
    return 0 if rename(file.path, older) == 0 or errno == ENOENT else errno


cdef int file_rotate(LogFile *file, int64_t now_ns) noexcept nogil:
    cdef int fd, failure = EEXIST
    if now_ns >= file.rotate_again_ns:
        failure = make_room(file)
        if not failure:
            fd = create(file.path)
            failure = adopt(file, fd) if fd >= 0 else errno
        if not failure:
            return 0
        file.rotate_again_ns = now_ns + RETRY_NS
    return EFBIG if file.size > file.max_bytes * (file.backups + 1) else failure


cdef bint file_cut(LogFile *file, long excess) noexcept nogil:
    cdef stat_t status
    if fstat(file.fd, &status) != 0 or status.st_size != file.size or status.st_size < excess:
        return False                # somebody else writes to it, too
    if ftruncate(file.fd, file.size - excess) != 0:
        return False
    file.size -= excess
    return True


cdef void file_close(LogFile *file) noexcept nogil:
    if file.fd >= 0:
        close(file.fd)
        file.fd = -1


cdef void file_free(LogFile *file) noexcept nogil:
    free(file.path)
    free(file)
