# From kernel events to lines and counts: the reader.

from libc.stdint cimport uint32_t, uint64_t

from argusd._output cimport SINKS_MAX, Sink
from argusd._records cimport Buffer, Stamp
from argusd._tree cimport Core

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
    CachedPath paths[PATHS]
    Stamp stamp
    char *events                    # what one read brought
    long thread_id
    uint64_t number                 # of the event that is being handled
    bint counted                    # something was counted in this batch
    unsigned long long reads
    unsigned long long handled
    unsigned long long reported
    unsigned long long overflows

cdef bint reader_init(Reader *reader, Core *core) noexcept nogil
cdef void reader_free(Reader *reader) noexcept nogil
cdef void reader_signal(Reader *reader) noexcept nogil
cdef void *reader_main(void *argument) noexcept nogil
