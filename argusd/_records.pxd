# The line of an event, encoded natively.

from libc.string cimport memcpy

from argusd._output cimport Share, Source

cdef enum:
    FIELD_LITERAL = 0
    FIELD_EVENT
    FIELD_FTYPE
    FIELD_PATH
    FIELD_FILE
    FIELD_SEP
    FIELD_RESPONSE
    FIELD_POD
    FIELD_NODE
    FIELD_TAGS
    FIELDS

# Growing bytes. ``failed`` is set, and the content incomplete, once memory ran out.
cdef struct Buffer:
    char *data
    size_t size
    size_t capacity
    bint failed

cdef struct Text:
    const char *data
    size_t size
    bint plain              # neither a quote nor a backslash is in it: JSON has it as it is

cdef struct Segment:
    int field               # FIELD_LITERAL: ``literal`` is all there is
    Text literal
    char fill[4]
    int fill_size
    bint fill_plain         # as Text.plain
    char align              # '<' '^' '>'
    int width               # 0: none
    int precision           # -1: none

# What does not change from event to event of one subscription.
cdef struct Lines:
    bint guard              # has a response, and no file
    int count
    Segment *segments
    Text fields[FIELDS]     # those that are fixed, from FIELD_POD on; the others are set per event
    Text json_tail          # from ,"pod": to the newline
    Share *share            # of the container, in the sinks; of watches and of guards apart

# The moment of a batch of events, in both line forms. All zero before it is first set.
cdef struct Stamp:
    long long second        # since 1970: that of the texts, in which only the microseconds are new each time
    char json[32]           # 2026-11-22T00:00:00.123456Z
    size_t json_size
    size_t json_at          # where the microseconds are
    char prefix[80]         # 1122 00:00:00.123456 tid file:line]  (with the severity letter in front)
    size_t prefix_size
    size_t prefix_at

cdef bint buffer_grow(Buffer *buffer, size_t size) noexcept nogil
cdef void buffer_free(Buffer *buffer) noexcept nogil


cdef inline bint buffer_room(Buffer *buffer, size_t size) noexcept nogil:
    """Make room for ``size`` more bytes; False when memory ran out."""
    return buffer.size + size <= buffer.capacity and not buffer.failed or buffer_grow(buffer, size)


cdef inline void buffer_add(Buffer *buffer, const char *data, size_t size) noexcept nogil:
    if buffer_room(buffer, size):
        memcpy(buffer.data + buffer.size, data, size)
        buffer.size += size


# ``place`` is what glog has as FILE:LINE; a stamp has one thread and one place.
cdef void stamp_set(Stamp *stamp, long long realtime_ns, long thread_id, const char *place) noexcept nogil

# Returns Text.plain of what it added.
cdef bint sanitize_into(Buffer *out, const char *name, size_t size) noexcept nogil

# The message, in ``out`` until that changes. ``fields`` are sanitized and indexed by FIELD_*; fixed ones in ``lines``.
cdef Text message_into(Buffer *out, const Lines *lines, const Text *fields) noexcept nogil
cdef void json_into(Buffer *out, const Lines *lines, const Text *fields, const Stamp *stamp,
                    Text message) noexcept nogil
cdef void text_into(Buffer *out, const Stamp *stamp, Text message, bint colour) noexcept nogil

cdef class Encoder:
    cdef Lines lines
    cdef list owned         # the bytes objects that ``lines`` points into
    cdef Source source

    cdef Text keep(self, bytes text)
    cdef int compile(self, segments) except -1
    cdef bytes encode(self, str form, str event, str ftype, bytes path, bytes file, str response,
                      long long realtime_ns)
