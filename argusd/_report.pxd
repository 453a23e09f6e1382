# Lines and counts: what becomes of an event that a subscription asked for.

from libc.stdint cimport int64_t, uint32_t, uint64_t

from argusd._output cimport SINKS_MAX, Sink
from argusd._records cimport Buffer, Stamp, Text
from argusd._tree cimport Core, Root
from argusd.includes.linux cimport inotify_event

cdef enum:
    PATHS = 64                      # directories whose sanitized path is kept

cdef struct CachedPath:
    uint32_t node
    uint32_t serial
    uint32_t generation
    Buffer text

cdef struct Reader:
    Core *core
    int stop_fd                     # an eventfd: readable when the reader is to end
    int counted_fd                  # an eventfd for Python: counts or notices wait
    int signalled                   # counted_fd was written and not yet acknowledged
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
    char *events_before             # what the read before that brought
    size_t events_before_size
    int64_t last_s                  # when the last batch was done, by the clock of file times
    uint32_t last_ns
    long thread_id
    uint64_t number                 # of the event that is being handled
    bint counted                    # something was counted in this batch
    unsigned long long reads
    unsigned long long handled
    unsigned long long reported
    unsigned long long overflows

cdef void emit(Reader *reader, uint32_t node, uint32_t bit, bint directory, const char *name, size_t size) noexcept nogil
cdef void emit_subject(Reader *reader, const Root *root, uint32_t bit) noexcept nogil
cdef void report(Reader *reader, uint32_t node, const inotify_event *event, size_t size) noexcept nogil
cdef void flush_lines(Reader *reader, int i) noexcept nogil
