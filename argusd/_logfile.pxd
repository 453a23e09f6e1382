# A log file on disk: opened safely, rotated, and found again when somebody moves it away.

from libc.stdint cimport int64_t

cdef struct LogFile:
    char *path
    int fd
    unsigned long device            # of the file behind ``fd``
    unsigned long inode
    long size
    long max_bytes
    int backups
    int64_t open_again_ns           # not before this moment, after it failed
    int64_t rotate_again_ns

# 0 or an errno: EEXIST when there is something that is not a plain file of ours with only this name.
cdef int file_open(LogFile *file) noexcept nogil

# Make sure that the file behind ``fd`` is the one at ``path``: somebody may have removed it, or moved it away. 0 or an
# errno; then the old one is still there to be written to.
cdef int file_follow(LogFile *file, int64_t now_ns) noexcept nogil

# Move path to path.1, path.1 to path.2 and so on, and start a new file. 0 or an errno: then nothing is lost.
cdef int file_rotate(LogFile *file, int64_t now_ns) noexcept nogil

# Take back what was written of a line that is not whole; False when that cannot be done.
cdef bint file_cut(LogFile *file, long excess) noexcept nogil
cdef void file_close(LogFile *file) noexcept nogil
cdef void file_free(LogFile *file) noexcept nogil
