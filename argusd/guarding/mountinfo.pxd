# Lines of /proc/PID/mountinfo.

from libc.stdint cimport uint64_t

# A piece of a line, with the octal escapes of the kernel still in it.
cdef struct Piece:
    const char *text
    size_t size

cdef struct Mount:
    uint64_t number
    uint64_t device                 # as statx(2) tells it: major << 32 | minor
    Piece root                      # what of the file system is mounted
    Piece point                     # where, from the root of the process
    Piece kind                      # the type of the file system
    Piece layers                    # options of the file system
    bint read_only                  # the mount or the file system

cdef bint mount_next(const char *text, size_t size, size_t *at, Mount *mount) noexcept nogil
cdef bint mount_find(const char *text, size_t size, uint64_t number, Mount *mount) noexcept nogil
cdef bint mount_has_device(const char *text, size_t size, uint64_t device) noexcept nogil
cdef bint piece_is(const Piece *piece, const char *word) noexcept nogil
cdef bint piece_begins(const Piece *piece, const char *word) noexcept nogil
cdef size_t piece_plain(const Piece *piece, char *out, size_t room) noexcept nogil
cdef bint piece_option(Piece *options, Piece *option) noexcept nogil
cdef bint path_covers(const char *above, size_t above_size, const char *path, size_t size) noexcept nogil
