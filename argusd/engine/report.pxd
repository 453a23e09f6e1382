# Lines and counts: what becomes of an event that a subscription asked for.

from libc.stdint cimport int64_t, uint32_t, uint64_t

from argusd._output cimport SINKS_MAX, Sink
from argusd._records cimport Buffer, Stamp, Text
from argusd.engine.core cimport Core, Root
from argusd.includes.linux cimport inotify_event

cdef enum:
    PATHS = 64                      # directories whose sanitized path is kept
    CREATED_KEPT = 64 * 1024        # names that were reported as created, a power of two

cdef struct Created:
    uint64_t hashed                 # of watch descriptor and name
    int64_t ns                      # when its batch was begun

cdef struct CachedPath:
    uint32_t node
    uint32_t serial
    uint32_t generation
    bint plain                      # as Text.plain
    Buffer text

cdef struct Reader:
    Core *core
    int stop_fd                     # an eventfd: readable when the reader is to end
    int wanted                      # somebody waits for counts
    int drain_ms                    # how long to go on after the stop, at the most
    int sink_count
    Sink *sinks[SINKS_MAX]
    Buffer lines[SINKS_MAX]         # of the batch that is being handled
    unsigned long long line_counts[SINKS_MAX]
    Buffer message
    Buffer file
    Buffer subject
    CachedPath paths[PATHS]
    Stamp stamp
    char *events                    # what one read brought
    Created *created                # ring of what was reported as created, for the repair after an overflow
    uint32_t created_at
    bint stale                      # the event at hand was held back, and others were lost since: listings know better
    int64_t batch_ns                # when the batch was begun
    int64_t read_ns                 # just before it was read
    int64_t last_ns                 # just before the batch before it was read
    long thread_id
    uint64_t number                 # of the event that is being handled
    bint counted                    # something was counted in this batch
    unsigned long long reads
    unsigned long long handled
    unsigned long long reported
    unsigned long long overflows

cdef void flush_lines(Reader *reader, int i) noexcept nogil
cdef void emit(Reader *reader, uint32_t node, uint32_t bit, bint directory, const char *name,
               size_t size) noexcept nogil
cdef void emit_subject(Reader *reader, const Root *root, uint32_t bit) noexcept nogil
cdef void report(Reader *reader, uint32_t node, const inotify_event *event, size_t size) noexcept nogil
