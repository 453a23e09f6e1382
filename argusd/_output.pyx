# cython: language_level=3, boundscheck=False, wraparound=False
"""Bounded line buffers with one native writer thread per sink.

Facts that shape this file:

* A pipe whose reader stalls blocks write(2). It must not be made non-blocking, because the flag belongs to the open
  file description and so to every process that shares it. Hence each sink has a thread of its own that may block,
  and producers that only ever copy into a ring.
* A wake-up costs as much as writing a hundred lines. So a writer that has just written before lets lines gather for
  a moment, and nobody has to wake it; after a quiet time a line goes out at once.
* A ring of anonymous memory costs nothing until it is touched; what a burst touched is given back to the kernel when
  the ring stays empty.
* /tmp is open to everybody: a log file there may have been planted. See ``open_log_file``.
"""

import os

from libc.errno cimport EAGAIN, EEXIST, EINTR, ELOOP, errno
from libc.stdint cimport int64_t
from libc.stdio cimport rename, snprintf
from libc.stdlib cimport calloc, free
from libc.string cimport memchr, memcpy, strdup
from libc.time cimport time_t, tm, gmtime_r, localtime_r, strftime
from posix.time cimport CLOCK_MONOTONIC, CLOCK_REALTIME, clock_gettime, timespec

from argusd.includes.linux cimport (
    MADV_DONTNEED,
    MAP_ANONYMOUS,
    MAP_FAILED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    O_APPEND,
    O_CLOEXEC,
    O_CREAT,
    O_EXCL,
    O_NOFOLLOW,
    O_NONBLOCK,
    O_WRONLY,
    POLLOUT,
    PRIO_PROCESS,
    PROT_READ,
    PROT_WRITE,
    SYS_gettid,
    S_ISREG,
    close,
    fstat,
    geteuid,
    ftruncate,
    madvise,
    mmap,
    munmap,
    open,
    poll,
    pollfd,
    setpriority,
    stat_t,
    syscall,
    unlink,
    write,
)
from argusd.includes.pthread cimport (
    SIG_SETMASK,
    pthread_cond_broadcast,
    pthread_cond_clockwait,
    pthread_cond_destroy,
    pthread_cond_init,
    pthread_cond_signal,
    pthread_cond_timedwait,
    pthread_cond_wait,
    pthread_create,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    pthread_setname_np,
    pthread_sigmask,
    pthread_timedjoin_np,
    sigfillset,
    sigset_t,
)

JSON = STYLE_JSON
TEXT = STYLE_TEXT
COLOUR = STYLE_COLOUR

cdef enum:
    WRITE_MAX = 256 * 1024
    GATHER_NS = 4 * 1000 * 1000
    GIVE_BACK = 1024 * 1024     # a ring that used more than this returns its memory when it has been empty
    GIVE_BACK_AFTER_S = 1       # for so long: to return it takes milliseconds, and the next burst would wait for them


cdef void sink_append(Sink *sink, const char *lines, size_t size, unsigned long long count) noexcept nogil:
    cdef size_t at, first
    cdef bint wake = False
    pthread_mutex_lock(&sink.lock)
    if sink.closing or sink.capacity - (sink.head - sink.tail) < size:
        if sink.dropped == sink.admitted:
            sink.drop_mark = sink.head
        sink.dropped += count
    else:
        at = sink.head & (sink.capacity - 1)
        first = min(size, sink.capacity - at)
        memcpy(sink.ring + at, lines, first)
        memcpy(sink.ring, lines + first, size - first)
        sink.head += size
        sink.high = max(sink.high, sink.capacity if first < size else at + size)
        wake = sink.wake_at != 0 and sink.head - sink.tail >= sink.wake_at
        if wake:
            sink.wake_at = 0
    pthread_mutex_unlock(&sink.lock)
    if wake:                        # not with the lock held, which is the first thing that the writer wants
        pthread_cond_signal(&sink.wake)


cdef size_t write_all(int fd, const char *data, size_t size) noexcept nogil:
    """Write until done or until it fails for good; returns the bytes written."""
    cdef size_t done = 0
    cdef ssize_t n
    cdef pollfd waiter
    while done < size:
        n = write(fd, data + done, size - done)
        if n >= 0:
            done += <size_t>n
        elif errno == EAGAIN:       # somebody else made the descriptor non-blocking
            waiter.fd, waiter.events = fd, POLLOUT
            poll(&waiter, 1, 1000)
        elif errno != EINTR:
            break
    return done


cdef unsigned long long count_lines(const char *data, size_t size) noexcept nogil:
    cdef unsigned long long lines = 0
    cdef const char *at = data
    cdef const char *end = data + size
    while at < end:
        at = <const char *>memchr(at, c'\n', <size_t>(end - at))
        if at == NULL:
            break
        lines += 1
        at += 1
    return lines


cdef size_t whole_lines(const char *data, size_t size) noexcept nogil:
    """How much of ``data`` ends in a newline; all of it when it holds none."""
    cdef size_t whole = size
    while whole and data[whole - 1] != c'\n':
        whole -= 1
    return whole if whole else size


cdef int create_log_file(const char *path) noexcept nogil:
    """Make a new, empty log file; what somebody planted under the name goes first."""
    cdef int fd = -1, _attempt
    for _attempt in range(3):
        fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0o640)
        if fd >= 0 or errno != EEXIST:
            break
        unlink(path)
    return fd


cdef int open_log_file(const char *path, long *size) noexcept nogil:
    """Open the log file to append; -1 with errno EEXIST when it is not a plain file of ours with only this name."""
    cdef stat_t status
    cdef int fd = open(path, O_WRONLY | O_APPEND | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC)
    size[0] = 0
    if fd < 0:
        if errno == ELOOP:          # a symbolic link
            (&errno)[0] = EEXIST
            return -1
        return open(path, O_WRONLY | O_APPEND | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0o640)
    if fstat(fd, &status) != 0 or not S_ISREG(status.st_mode) or status.st_uid != geteuid() or status.st_nlink != 1:
        close(fd)
        (&errno)[0] = EEXIST
        return -1
    size[0] = status.st_size
    return fd


cdef void rotate(Sink *sink) noexcept nogil:
    """Move path to path.1, path.1 to path.2 and so on, and start a new file; without room for that, empty it."""
    cdef char older[4200]
    cdef char newer[4200]
    cdef int number, fd
    for number in range(sink.backups, 0, -1):
        snprintf(older, sizeof(older), b"%s.%d", sink.path, number)
        if number > 1:
            snprintf(newer, sizeof(newer), b"%s.%d", sink.path, number - 1)
        else:
            snprintf(newer, sizeof(newer), b"%s", sink.path)
        rename(newer, older)
    fd = create_log_file(sink.path)
    if fd >= 0:
        close(sink.fd)
        sink.fd = fd
    else:
        ftruncate(sink.fd, 0)
    sink.file_size = 0


cdef void tell_dropped(Sink *sink, unsigned long long lines) noexcept nogil:
    cdef char text[256]
    cdef char stamp[64]
    cdef timespec now
    cdef tm parts
    cdef time_t seconds
    cdef int size
    clock_gettime(CLOCK_REALTIME, &now)
    seconds = now.tv_sec
    if sink.style == STYLE_JSON:
        gmtime_r(&seconds, &parts)
        strftime(stamp, sizeof(stamp), b"%Y-%m-%dT%H:%M:%S", &parts)
        size = snprintf(
            text, sizeof(text),
            b'{"timestamp":"%s.%06ldZ","level":"WARNING","logger":"argusd.output",'
            b'"message":"%llu log lines were dropped here, the reader of this output is too slow","dropped":%llu}\n',
            stamp, <long>(now.tv_nsec // 1000), lines, lines)
    else:
        localtime_r(&seconds, &parts)
        strftime(stamp, sizeof(stamp), b"%m%d %H:%M:%S", &parts)
        size = snprintf(
            text, sizeof(text),
            b"W%s.%06ld 0 _output.pyx:1] %llu log lines were dropped here, the reader of this output is too slow\n",
            stamp, <long>(now.tv_nsec // 1000), lines)
    write_all(sink.fd, text, <size_t>size)
    sink.file_size += size


cdef void deadline_after(timespec *when, double timeout_s) noexcept nogil:
    cdef long nanoseconds
    clock_gettime(CLOCK_REALTIME, when)
    nanoseconds = when.tv_nsec + <long>((timeout_s - <long>timeout_s) * 1e9)
    when.tv_sec += <long>timeout_s + nanoseconds // 1000000000
    when.tv_nsec = nanoseconds % 1000000000


cdef int64_t monotonic_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t>now.tv_sec * 1000000000 + now.tv_nsec


cdef void gather(Sink *sink) noexcept nogil:
    """With the lock held: let lines come for a moment, unless there is enough of them or somebody waits for them."""
    cdef size_t enough = min(<size_t>WRITE_MAX, sink.capacity // 2)
    cdef int64_t until_ns = monotonic_ns() + GATHER_NS   # a step of the wall clock must not hold lines back
    cdef timespec when
    when.tv_sec, when.tv_nsec = until_ns // 1000000000, until_ns % 1000000000
    while sink.head - sink.tail < enough and not sink.closing and not sink.flushing:
        sink.wake_at = enough
        if pthread_cond_clockwait(&sink.wake, &sink.lock, CLOCK_MONOTONIC, &when) != 0:
            break
    sink.wake_at = 0


cdef void *writer(void *argument) noexcept nogil:
    """The life of a sink's thread: write what is queued, in large pieces, outside the lock."""
    cdef Sink *sink = <Sink *>argument
    cdef size_t at, size, done
    cdef unsigned long long untold
    cdef int64_t before_ns, begun_ns = 0
    cdef timespec when
    cdef bint inside = False        # the last piece ended inside a line
    # The reader may wait for this thread's lock: it must not lose the processor to others while it holds it. May fail.
    setpriority(PRIO_PROCESS, <unsigned int>syscall(SYS_gettid), -20)
    pthread_mutex_lock(&sink.lock)
    while True:
        while sink.head == sink.tail and not sink.closing and sink.dropped == sink.admitted:
            sink.wake_at = 1
            if sink.high <= GIVE_BACK:
                pthread_cond_wait(&sink.wake, &sink.lock)
            else:
                deadline_after(&when, GIVE_BACK_AFTER_S)
                if pthread_cond_timedwait(&sink.wake, &sink.lock, &when) != 0 and sink.head == sink.tail:
                    madvise(sink.ring, sink.capacity, MADV_DONTNEED)
                    sink.high = 0
            sink.wake_at = 0
        if sink.head == sink.tail and sink.dropped == sink.admitted:
            break
        at = sink.tail & (sink.capacity - 1)
        size = <size_t>min(sink.head - sink.tail, min(sink.capacity - at, <size_t>WRITE_MAX))
        untold = 0
        if sink.dropped != sink.admitted and sink.tail >= sink.drop_mark:
            untold = sink.dropped - sink.admitted
            sink.admitted = sink.dropped
        elif sink.dropped != sink.admitted and sink.tail + size > sink.drop_mark:
            size = <size_t>(sink.drop_mark - sink.tail)
        pthread_mutex_unlock(&sink.lock)

        if sink.path != NULL:       # a rotation, or a word about dropped lines, must not come inside a line
            size = whole_lines(sink.ring + at, size)
        before_ns, begun_ns = begun_ns, monotonic_ns()
        if untold:
            tell_dropped(sink, untold)
        if sink.path != NULL and not inside and sink.file_size + <long>size > sink.max_bytes and sink.file_size > 0:
            rotate(sink)
        done = write_all(sink.fd, sink.ring + at, size)
        inside = size > 0 and sink.ring[at + size - 1] != c'\n'
        sink.file_size += <long>done
        if done < size:             # a closed pipe, a full disk: these lines are lost, and counted
            untold = count_lines(sink.ring + at + done, size - done)
        else:
            untold = 0

        pthread_mutex_lock(&sink.lock)
        sink.dropped += untold
        sink.admitted += untold     # saying so on an output that cannot be written would fail as well
        sink.tail += size
        if sink.head == sink.tail:  # go on at the start of the ring, whose memory is in use already
            sink.tail = (sink.tail + sink.capacity - 1) & ~<unsigned long long>(sink.capacity - 1)
            sink.head = sink.tail
        if sink.flushing:
            pthread_cond_broadcast(&sink.written)
        if begun_ns - before_ns < 2 * GATHER_NS:
            gather(sink)
    sink.running = 0
    pthread_cond_broadcast(&sink.written)
    pthread_mutex_unlock(&sink.lock)
    return NULL


cdef bint wait_written(Sink *sink, unsigned long long mark, const timespec *when) noexcept nogil:
    cdef bint in_time = True
    pthread_mutex_lock(&sink.lock)
    sink.flushing += 1
    pthread_cond_signal(&sink.wake)
    while sink.tail < mark and sink.running and in_time:
        in_time = pthread_cond_timedwait(&sink.written, &sink.lock, when) == 0
    in_time = sink.tail >= mark
    sink.flushing -= 1
    pthread_mutex_unlock(&sink.lock)
    return in_time


cdef class Output:
    def __cinit__(self):
        self.count = 0
        self.closed = False

    def __dealloc__(self):
        # Not before: whoever writes to a sink holds this object. A writer that still runs owns its sink.
        cdef int i
        for i in range(self.count):
            if self.sinks[i].joined:
                free_sink(self.sinks[i])

    cdef Sink *new_sink(self, int fd, int style, size_t capacity) except NULL:
        cdef Sink *sink
        cdef size_t size = 4096
        if self.closed or self.count == SINKS_MAX:
            raise RuntimeError("no more sinks can be added to this output")
        while size < capacity:
            size *= 2
        sink = <Sink *>calloc(1, sizeof(Sink))
        if sink == NULL:
            raise MemoryError
        sink.ring = <char *>mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        if <void *>sink.ring == MAP_FAILED:
            free(sink)
            raise MemoryError
        sink.fd = fd
        sink.style = style
        sink.capacity = size
        pthread_mutex_init(&sink.lock, NULL)
        pthread_cond_init(&sink.wake, NULL)
        pthread_cond_init(&sink.written, NULL)
        return sink

    cdef int start(self, Sink *sink) except -1:
        cdef sigset_t every, before
        cdef int failure
        sigfillset(&every)
        sink.running = 1
        pthread_sigmask(SIG_SETMASK, &every, &before)   # signals are the main thread's
        failure = pthread_create(&sink.thread, NULL, writer, sink)
        pthread_sigmask(SIG_SETMASK, &before, NULL)
        if failure:
            sink.running = 0
            free_sink(sink)
            raise OSError(failure, f"cannot start a log writer thread: {os.strerror(failure)}")
        pthread_setname_np(sink.thread, b"writer-file" if sink.path != NULL else b"writer-fd")
        self.sinks[self.count] = sink
        self.count += 1
        return 0

    def add_descriptor(self, int fd, int style, size_t capacity_bytes=32 << 20):
        if style not in (STYLE_JSON, STYLE_TEXT, STYLE_COLOUR):
            raise ValueError(f"unknown line style {style}")
        self.start(self.new_sink(fd, style, capacity_bytes))

    def add_file(self, str path, long max_bytes, int backups, size_t capacity_bytes=32 << 20):
        cdef bytes name = os.fsencode(path)
        cdef long size = 0
        cdef int fd, failure
        cdef Sink *sink
        if b"\0" in name or len(name) > 4000:
            raise ValueError(f"not a usable log file name: {path!r}")
        fd = open_log_file(name, &size)
        if fd < 0:
            failure = errno
            if failure == EEXIST:
                raise FileExistsError(failure, "exists and is not a plain file of this user with one name", path)
            raise OSError(failure, os.strerror(failure), path)
        try:
            sink = self.new_sink(fd, STYLE_TEXT, capacity_bytes)
        except BaseException:
            close(fd)
            raise
        sink.path = strdup(name)
        sink.file_size = size
        sink.max_bytes = max_bytes
        sink.backups = backups
        self.start(sink)

    def write(self, bytes json_line not None, bytes text_line not None, bytes colour_line not None):
        cdef int i
        cdef const char *line
        cdef size_t size
        for i in range(self.count):
            if self.sinks[i].style == STYLE_JSON:
                line, size = json_line, len(json_line)
            elif self.sinks[i].style == STYLE_TEXT:
                line, size = text_line, len(text_line)
            else:
                line, size = colour_line, len(colour_line)
            with nogil:
                sink_append(self.sinks[i], line, size, 1)

    def flush(self, double timeout_s):
        cdef timespec when
        cdef unsigned long long mark
        cdef bint done = True
        cdef int i
        with nogil:
            deadline_after(&when, timeout_s)
            for i in range(self.count):
                pthread_mutex_lock(&self.sinks[i].lock)
                mark = self.sinks[i].head
                pthread_mutex_unlock(&self.sinks[i].lock)
                done = wait_written(self.sinks[i], mark, &when) and done
        return done

    def dropped(self):
        cdef unsigned long long total = 0
        cdef int i
        for i in range(self.count):
            with nogil:
                pthread_mutex_lock(&self.sinks[i].lock)
                total += self.sinks[i].dropped
                pthread_mutex_unlock(&self.sinks[i].lock)
        return total

    def close(self, double timeout_s=2.0):
        cdef timespec when
        cdef bint done = True
        cdef int i
        if self.closed:
            return True
        self.closed = True
        with nogil:
            deadline_after(&when, timeout_s)
            for i in range(self.count):
                pthread_mutex_lock(&self.sinks[i].lock)
                self.sinks[i].closing = 1
                pthread_cond_signal(&self.sinks[i].wake)
                pthread_mutex_unlock(&self.sinks[i].lock)
            for i in range(self.count):
                if pthread_timedjoin_np(self.sinks[i].thread, NULL, &when) == 0:
                    self.sinks[i].joined = True
                    if self.sinks[i].path != NULL:
                        close(self.sinks[i].fd)
                else:
                    done = False    # its output is stuck: the thread keeps its sink until the process ends
        return done


cdef void free_sink(Sink *sink) noexcept nogil:
    munmap(sink.ring, sink.capacity)
    pthread_mutex_destroy(&sink.lock)
    pthread_cond_destroy(&sink.wake)
    pthread_cond_destroy(&sink.written)
    free(sink.path)
    free(sink)
