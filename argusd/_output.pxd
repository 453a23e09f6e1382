# Lines on their way to stderr and argusd.INFO.

from libc.stdint cimport int64_t

from argusd._logfile cimport LogFile
from argusd.includes.pthread cimport load_u64, pthread_cond_t, pthread_mutex_t, pthread_t

cdef enum:
    STYLE_JSON = 0
    STYLE_TEXT = 1
    STYLE_COLOUR = 2
    SINKS_MAX = 4
    LABEL_MAX = 160
    BLAMED_MAX = 8
    SHARE_FACTOR = 4                # one source may hold so many times what is free in a ring

# What one source of lines, such as a container, has in the ring of one sink. Only the source's own thread comes here.
cdef struct Holding:
    unsigned long long turn         # Sink.turn in which ``now`` began
    size_t now                      # bytes appended in this turn
    size_t before                   # and in the turn before

cdef struct Share:
    Holding holdings[SINKS_MAX]
    char label[LABEL_MAX]           # sanitized, ends in a NUL

# Dropped lines of one source that no line tells of yet.
cdef struct Blamed:
    char label[LABEL_MAX]
    unsigned long long lines

# All sinks of an output. It stays when a writer that is stuck outlives the Output.
cdef struct Sinks:
    Sink *all[SINKS_MAX]
    int count

cdef struct Sink:
    Sinks *sinks
    int number                      # in ``sinks``
    int fd                          # of a descriptor; -1 for a file
    int style
    char *ring                      # capacity bytes, a power of two; pages are touched only when used
    size_t capacity
    unsigned long long head         # bytes ever appended
    unsigned long long tail         # bytes ever written
    unsigned long long high         # so many bytes of the ring were used since memory was last given back
    unsigned long long dropped      # lines ever dropped
    unsigned long long admitted     # of these, how many a WARNING line has told of
    unsigned long long drop_mark    # head when the first line that was not told of was dropped
    int64_t told_ns                 # when the last such WARNING was written
    Blamed blamed[BLAMED_MAX]       # whose lines they are; those of further sources are told without a name
    unsigned long long turn         # one more each time that all is written that was queued when it last changed
    unsigned long long turn_mark
    int closing
    size_t wake_at                  # bytes that wait from which on the writer is woken; 0: it is at work
    int flushing                    # so many wait until everything is written
    int running
    bint joined                     # nobody writes any more what is queued
    pthread_mutex_t lock
    pthread_cond_t wake             # the writer: there is something to write
    pthread_cond_t written          # flush(): the tail moved
    pthread_t thread
    LogFile *file                   # NULL for a descriptor; from here on the writer's own
    bint inside                     # the last piece written ends inside a line, which goes on in the next
    bint torn                       # the rest of that line was lost
    bint headless                   # the next piece begins inside a line whose beginning was lost
    int failure                     # of the last write; 0 when it worked
    unsigned long long lost         # lines that could not be written, and of which no line here tells yet
    int64_t complained_ns           # when the other sinks were last told
    bint blocked_told               # they know that the file cannot be rotated, or opened anew

# Queue whole lines; when they do not fit, all of them are dropped and counted. Never waits for output.
cdef void sink_append(Sink *sink, const char *lines, size_t size, unsigned long long count) noexcept nogil

# Count a line that was not queued because its source holds its share of the ring.
cdef void sink_refuse(Sink *sink, const Share *share) noexcept nogil


cdef inline bint sink_admits(Sink *sink, Share *share, size_t pending, size_t size) noexcept nogil:
    """True if a line may be queued behind ``pending`` bytes that are about to be; it is counted as the source's then.

    A source may hold a multiple of what is free: when it is alone that is most of the ring, and whoever holds little
    always finds room. What a source holds is estimated from above, by what it appended in this turn and the last.
    """
    cdef Holding *holding = &share.holdings[sink.number]
    cdef unsigned long long turn = load_u64(&sink.turn)
    cdef unsigned long long used = load_u64(&sink.head) + pending + size - load_u64(&sink.tail)
    if holding.turn != turn:
        holding.before = holding.now if holding.turn + 1 == turn else 0
        holding.now = 0
        holding.turn = turn
    if used > sink.capacity or holding.now + holding.before > SHARE_FACTOR * (sink.capacity - used):
        return False
    holding.now += size
    return True


cdef class Source:
    cdef Share share
    cdef object __weakref__


cdef class Output:
    cdef Sinks *family
    cdef Sink *sinks[SINKS_MAX]     # as in ``family``
    cdef int count
    cdef bint closed

    cdef Sink *new_sink(self, int fd, int style, size_t capacity) except NULL
    cdef int start(self, Sink *sink) except -1
