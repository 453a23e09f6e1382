# cython: language_level=3, boundscheck=False, wraparound=False
"""Reading lines of mountinfo, which tells of file systems without asking them.

Facts about proc_pid_mountinfo(5) that shape this file:

* The fields are: mount number, that of the parent, major:minor, root, mount point, options of the mount, any number of
  optional fields, a dash, type, source, options of the file system.
* Space, tab, newline and backslash are written as octal escapes. So a container can put no separator into a line.
* Only what can be reached from the root of the process is listed, and mount points are told from there.
* A process with a long line behind it can make the text end anywhere: a line without its newline does not count.
"""

from libc.string cimport memchr, memcmp, strlen


cdef enum:
    NUMBER = 0                      # fields
    DEVICE = 2
    ROOT = 3
    POINT = 4
    OPTIONS = 5
    FIXED = 6                       # from here on there are optional fields, up to the dash


cdef bint piece_is(const Piece *piece, const char *word) noexcept nogil:
    return piece.size == strlen(word) and memcmp(piece.text, word, piece.size) == 0


cdef bint piece_begins(const Piece *piece, const char *word) noexcept nogil:
    return piece.size >= strlen(word) and memcmp(piece.text, word, strlen(word)) == 0


cdef size_t piece_plain(const Piece *piece, char *out, size_t room) noexcept nogil:
    """Write a piece without its escapes; its size, 0 where there is no room for it."""
    cdef size_t at = 0, size = 0
    while at < piece.size:
        if size == room:
            return 0
        if piece.text[at] == c'\\' and piece.size - at > 3:
            out[size] = <char>(((piece.text[at + 1] - c'0') << 6) | ((piece.text[at + 2] - c'0') << 3)
                               | (piece.text[at + 3] - c'0'))
            at += 4
        else:
            out[size] = piece.text[at]
            at += 1
        size += 1
    return size


cdef bint piece_option(Piece *options, Piece *option) noexcept nogil:
    """Take the first of a list with commas; False when there is none left."""
    cdef const char *comma
    if options.size == 0:
        return False
    comma = <const char *>memchr(options.text, c',', options.size)
    option.text = options.text
    option.size = <size_t>(comma - options.text) if comma != NULL else options.size
    options.text += option.size
    options.size -= option.size
    if options.size:
        options.text += 1
        options.size -= 1
    return True


cdef bint path_covers(const char *above, size_t above_size, const char *path, size_t size) noexcept nogil:
    """True if a path is the one above, or below it."""
    if above_size == 1 and above[0] == c'/':
        return size > 0 and path[0] == c'/'
    return (size >= above_size and memcmp(above, path, above_size) == 0
            and (size == above_size or path[above_size] == c'/'))


cdef bint field(const char **at, const char *end, Piece *piece) noexcept nogil:
    """Take the next field of a line; False when there is none."""
    cdef const char *stop
    if at[0] >= end:
        return False
    stop = <const char *>memchr(at[0], c' ', <size_t>(end - at[0]))
    piece.text = at[0]
    piece.size = <size_t>((stop if stop != NULL else end) - at[0])
    at[0] += piece.size + 1
    return piece.size > 0


cdef uint64_t number_in(const Piece *piece, size_t *at) noexcept nogil:
    cdef uint64_t value = 0
    while at[0] < piece.size and c'0' <= piece.text[at[0]] <= c'9':
        value = value * 10 + <uint64_t>(piece.text[at[0]] - c'0')
        at[0] += 1
    return value


cdef bint lists_read_only(Piece options) noexcept nogil:
    cdef Piece option
    while piece_option(&options, &option):
        if piece_is(&option, b"ro"):
            return True
    return False


cdef bint read_line(const char *line, const char *end, Mount *mount) noexcept nogil:
    """Take a line apart; False when it is none of mountinfo."""
    cdef Piece pieces[FIXED]
    cdef Piece piece
    cdef size_t at = 0
    cdef int i
    for i in range(FIXED):
        if not field(&line, end, &pieces[i]):
            return False
    mount.number = number_in(&pieces[NUMBER], &at)
    at = 0
    mount.device = number_in(&pieces[DEVICE], &at) << 32
    at += 1
    mount.device |= number_in(&pieces[DEVICE], &at)
    mount.root, mount.point = pieces[ROOT], pieces[POINT]
    piece.size = 0
    while not (piece.size == 1 and piece.text[0] == c'-'):
        if not field(&line, end, &piece):
            return False
    if not field(&line, end, &mount.kind):
        return False
    field(&line, end, &piece)       # the source, which may be empty
    if not field(&line, end, &mount.layers):
        mount.layers.size = 0
    mount.read_only = lists_read_only(pieces[OPTIONS]) or lists_read_only(mount.layers)
    return True


cdef bint mount_next(const char *text, size_t size, size_t *at, Mount *mount) noexcept nogil:
    """Take the next line that is one; False at the end."""
    cdef const char *line
    cdef const char *end
    while at[0] < size:
        line = text + at[0]
        end = <const char *>memchr(line, c'\n', size - at[0])
        if end == NULL:
            return False
        at[0] = <size_t>(end - text) + 1
        if read_line(line, end, mount):
            return True
    return False


cdef bint mount_find(const char *text, size_t size, uint64_t number, Mount *mount) noexcept nogil:
    """The mount with that number; False when it is not listed."""
    cdef size_t at = 0
    while mount_next(text, size, &at, mount):
        if mount.number == number:
            return True
    return False


cdef bint mount_has_device(const char *text, size_t size, uint64_t device) noexcept nogil:
    cdef Mount mount
    cdef size_t at = 0
    while mount_next(text, size, &at, &mount):
        if mount.device == device:
            return True
    return False
