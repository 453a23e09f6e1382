# Lines on their way to stderr and argusd.INFO.

from argusd.includes.pthread cimport pthread_cond_t, pthread_mutex_t, pthread_t

cdef enum:
    STYLE_JSON = 0
    STYLE_TEXT = 1
    STYLE_COLOUR = 2
    SINKS_MAX = 4

cdef struct Sink:
    int fd
    int style
    char *ring                      # capacity bytes, a power of two; pages are touched only when used
    size_t capacity
    unsigned long long head         # bytes ever appended
    unsigned long long tail         # bytes ever written
    unsigned long long high         # so many bytes of the ring were used since memory was last given back
    unsigned long long dropped      # lines ever dropped
    unsigned long long admitted     # of these, how many a WARNING line has told of
    unsigned long long drop_mark    # head when the first line that was not told of was dropped
    int closing
    size_t wake_at                  # bytes that wait from which on the writer is woken; 0: it is at work
    int flushing                    # so many wait until everything is written
    int running
    bint joined                     # nobody writes any more what is queued
    pthread_mutex_t lock
    pthread_cond_t wake             # the writer: there is something to write
    pthread_cond_t written          # flush(): the tail moved
    pthread_t thread
    char *path                      # of a file; NULL for a descriptor
    long file_size
    long max_bytes
    int backups

# Queue whole lines; when they do not fit, all of them are dropped and counted. Never waits for output.
cdef void sink_append(Sink *sink, const char *lines, size_t size, unsigned long long count) noexcept nogil

cdef class Output:
    cdef Sink *sinks[SINKS_MAX]
    cdef int count
    cdef bint closed

    cdef Sink *new_sink(self, int fd, int style, size_t capacity) except NULL
    cdef int start(self, Sink *sink) except -1
