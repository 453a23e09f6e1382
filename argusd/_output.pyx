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
* A disk may be full for a while. What cannot be written is lost, counted, and told: to the other sinks at once, and
  in its own place as soon as there is room.
* One source of lines must not push out those of the others: see ``sink_admits``.
"""

import os

from libc.errno cimport EAGAIN, EEXIST, EFBIG, EINTR, errno
from libc.stdint cimport int64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free
from libc.string cimport memchr, memcpy, memset, strcmp, strdup, strncpy
from libc.time cimport time_t, tm, gmtime_r, localtime_r, strftime
from posix.time cimport CLOCK_MONOTONIC, CLOCK_REALTIME, clock_gettime, timespec

from argusd._logfile cimport LogFile, file_close, file_cut, file_follow, file_free, file_open, file_rotate
from argusd.includes.linux cimport (
    MADV_DONTNEED,
    MAP_ANONYMOUS,
    MAP_FAILED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    POLLOUT,
    PRIO_PROCESS,
    PROT_READ,
    PROT_WRITE,
    SYS_gettid,
    madvise,
    mmap,
    munmap,
    poll,
    pollfd,
    setpriority,
    strerror_r,
    syscall,
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
    store_u64,
)

JSON = STYLE_JSON
TEXT = STYLE_TEXT
COLOUR = STYLE_COLOUR

cdef enum:
    WRITE_MAX = 256 * 1024
    GATHER_NS = 4 * 1000 * 1000
    GIVE_BACK = 1024 * 1024     # a ring that used more than this returns its memory when it has been empty
    GIVE_BACK_AFTER_S = 1       # for so long: to return it takes milliseconds, and the next burst would wait for them
    OWN_LINE_MAX = 12 * 1024
    ESCAPED_MAX = 5 * 1024

cdef int64_t TELL_NS = 1000 * 1000 * 1000
cdef int64_t COMPLAIN_NS = 60 * TELL_NS


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
        store_u64(&sink.head, sink.head + size)
        sink.high = max(sink.high, sink.capacity if first < size else at + size)
        wake = sink.wake_at != 0 and sink.head - sink.tail >= sink.wake_at
        if wake:
            sink.wake_at = 0
    pthread_mutex_unlock(&sink.lock)
    if wake:                        # not with the lock held, which is the first thing that the writer wants
        pthread_cond_signal(&sink.wake)


cdef void sink_refuse(Sink *sink, const Share *share) noexcept nogil:
    cdef int i
    pthread_mutex_lock(&sink.lock)
    if sink.dropped == sink.admitted:
        sink.drop_mark = sink.head
    sink.dropped += 1
    for i in range(BLAMED_MAX):
        if sink.blamed[i].lines == 0:
            memcpy(sink.blamed[i].label, share.label, LABEL_MAX)
        elif strcmp(sink.blamed[i].label, share.label) != 0:
            continue
        sink.blamed[i].lines += 1
        break
    pthread_mutex_unlock(&sink.lock)


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


cdef char *cleaned(char *out, const char *text, bint json) noexcept nogil:
    """Make ``text`` fit into a line, in ``out`` of ESCAPED_MAX bytes; a path may hold any byte."""
    cdef char *at = out
    while text[0] != 0 and at < out + ESCAPED_MAX - 3:
        if json and (text[0] == c'"' or text[0] == c'\\'):
            at[0] = c'\\'
            at += 1
        at[0] = c'?' if 0 <= text[0] < 0x20 or text[0] == 0x7f else text[0]
        at += 1
        text += 1
    at[0] = 0
    return out


cdef size_t own_line(char *out, int style, const char *message, unsigned long long lines) noexcept nogil:
    """A WARNING of this module about ``lines``, in ``out`` of OWN_LINE_MAX bytes; returns its size."""
    cdef char stamp[64]
    cdef char inside[ESCAPED_MAX]
    cdef timespec now
    cdef tm parts
    cdef time_t seconds
    cdef int size
    clock_gettime(CLOCK_REALTIME, &now)
    seconds = now.tv_sec
    if style == STYLE_JSON:
        gmtime_r(&seconds, &parts)
        strftime(stamp, sizeof(stamp), b"%Y-%m-%dT%H:%M:%S", &parts)
        size = snprintf(
            out, OWN_LINE_MAX,
            b'{"timestamp":"%s.%06ldZ","level":"WARNING","logger":"argusd.output","message":"%s","dropped":%llu}\n',
            stamp, <long>(now.tv_nsec // 1000), cleaned(inside, message, True), lines)
    else:
        localtime_r(&seconds, &parts)
        strftime(stamp, sizeof(stamp), b"%m%d %H:%M:%S", &parts)
        size = snprintf(
            out, OWN_LINE_MAX, b"W%s.%06ld 0 _output.pyx:1] %s\n", stamp, <long>(now.tv_nsec // 1000),
            cleaned(inside, message, False))
    return <size_t>min(size, OWN_LINE_MAX - 1)


cdef void complain(Sink *sink, const char *message, unsigned long long lines) noexcept nogil:
    """Tell the other sinks; with no lock held."""
    cdef char line[OWN_LINE_MAX]
    cdef Sink *other
    cdef int i
    for i in range(sink.sinks.count):
        other = sink.sinks.all[i]
        if other != sink:
            sink_append(other, line, own_line(line, other.style, message, lines), 1)


cdef size_t put(Sink *sink, const char *data, size_t size) noexcept nogil:
    """Write ``data`` on a line of its own; returns how much of it is written and stays.

    What was written of a line that is not whole is taken back, or closed by a newline before the next one.
    """
    cdef int fd = sink.file.fd if sink.file != NULL else sink.fd
    cdef size_t done = 0, kept
    if sink.torn:
        if write_all(fd, b"\n", 1) != 1:
            sink.failure = errno
            return 0
        sink.torn = False
        if sink.file != NULL:
            sink.file.size += 1
    done = write_all(fd, data, size)
    sink.failure = errno if done < size else 0
    if sink.file != NULL:
        sink.file.size += <long>done
    if done == size:
        sink.inside = size > 0 and data[size - 1] != c'\n'
        return size
    kept = done
    while kept and data[kept - 1] != c'\n':
        kept -= 1
    if done > kept and (sink.file == NULL or not file_cut(sink.file, <long>(done - kept))):
        sink.torn = True
    if sink.inside and kept == 0:
        sink.torn = True
    sink.inside = False
    return kept


cdef void tell_dropped(Sink *sink, unsigned long long lines, const Blamed *blamed) noexcept nogil:
    cdef char line[OWN_LINE_MAX]
    cdef char message[ESCAPED_MAX]
    cdef size_t size
    cdef int i
    size = <size_t>snprintf(
        message, sizeof(message), b"%llu log lines were dropped here, the reader of this output is too slow", lines)
    for i in range(BLAMED_MAX):
        if blamed[i].lines and size < sizeof(message) - LABEL_MAX - 32:
            size += <size_t>snprintf(
                message + size, sizeof(message) - size, b"%s %llu of %s", b":" if i == 0 else b",", blamed[i].lines,
                blamed[i].label)
    put(sink, line, own_line(line, sink.style, message, lines))


cdef bint tell_lost(Sink *sink) noexcept nogil:
    """Say here that lines could not be written, now that they can; False when they cannot."""
    cdef char line[OWN_LINE_MAX]
    cdef char message[ESCAPED_MAX]
    cdef size_t size
    snprintf(message, sizeof(message), b"%llu log lines were lost here, they could not be written", sink.lost)
    size = own_line(line, sink.style, message, sink.lost)
    if put(sink, line, size) != size:
        return False
    if sink.file != NULL:
        snprintf(
            message, sizeof(message), b"%s is written again, %llu lines were lost", sink.file.path, sink.lost)
        complain(sink, message, sink.lost)
    sink.lost = 0
    sink.complained_ns = 0
    return True


cdef void note_lost(Sink *sink, unsigned long long lines, int64_t now_ns) noexcept nogil:
    """Count lines that could not be written; tell the other sinks at once, and then once a minute."""
    cdef char message[ESCAPED_MAX]
    cdef char reason[128]
    sink.lost += lines
    if sink.file == NULL or (sink.complained_ns and now_ns - sink.complained_ns < COMPLAIN_NS):
        return
    sink.complained_ns = now_ns
    snprintf(
        message, sizeof(message), b"%s cannot be written: %s; %llu lines are lost so far", sink.file.path,
        strerror_r(sink.failure, reason, sizeof(reason)), sink.lost)
    complain(sink, message, sink.lost)


cdef void tell_blocked(Sink *sink, const char *what, int failure) noexcept nogil:
    cdef char message[ESCAPED_MAX]
    cdef char reason[128]
    if not sink.blocked_told:
        sink.blocked_told = True
        snprintf(message, sizeof(message), what, sink.file.path, strerror_r(failure, reason, sizeof(reason)))
        complain(sink, message, 0)


cdef int prepare_file(Sink *sink, size_t size, int64_t now_ns) noexcept nogil:
    """Find the file again, and rotate it when it is full; 0, or an errno when nothing may be written."""
    cdef int failure = file_follow(sink.file, now_ns)
    if failure:
        tell_blocked(sink, b"%s is not the log file any more and cannot be opened anew: %s; "
                     b"lines go on into the file that was there", failure)
    if sink.file.size + <long>size <= sink.file.max_bytes or sink.file.size == 0:
        return 0
    failure = file_rotate(sink.file, now_ns)
    if failure == EFBIG:
        return failure
    if failure:
        tell_blocked(sink, b"%s cannot be rotated: %s; it grows to the size of all older logs together, "
                     b"and lines beyond that are lost", failure)
    else:
        sink.blocked_told = False
    return 0


cdef size_t write_piece(Sink *sink, const char *data, size_t size, int64_t now_ns) noexcept nogil:
    """Write a piece of the ring, preceded by what there is to say; returns the lines that are lost."""
    cdef const char *newline
    cdef size_t done = 0
    cdef unsigned long long lines
    if sink.headless:
        newline = <const char *>memchr(data, c'\n', size)
        done = <size_t>(newline + 1 - data) if newline != NULL else size
        sink.headless = newline == NULL
        return (0 if sink.headless else 1) + (write_piece(sink, data + done, size - done, now_ns) if done < size else 0)
    if sink.file != NULL and not sink.inside:
        sink.failure = prepare_file(sink, size, now_ns)
    else:
        sink.failure = 0
    if not sink.failure and (sink.lost == 0 or sink.inside or tell_lost(sink)):
        done = put(sink, data, size)
    if done == size:
        return 0
    sink.headless = data[size - 1] != c'\n'
    lines = count_lines(data + done, size - done)
    note_lost(sink, lines, now_ns)
    return lines


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


cdef void move_tail(Sink *sink, size_t size) noexcept nogil:
    """With the lock held: so much of the ring is written."""
    cdef unsigned long long start
    store_u64(&sink.tail, sink.tail + size)
    if sink.tail >= sink.turn_mark:
        store_u64(&sink.turn, sink.turn + 1)
        sink.turn_mark = sink.head
    if sink.head == sink.tail:      # go on at the start of the ring, whose memory is in use already
        start = (sink.tail + sink.capacity - 1) & ~<unsigned long long>(sink.capacity - 1)
        store_u64(&sink.head, start)
        store_u64(&sink.tail, start)
        sink.turn_mark = start


cdef unsigned long long take_untold(Sink *sink, size_t *size, int64_t now_ns, Blamed *blamed) noexcept nogil:
    """With the lock held: the dropped lines to tell of before the next piece, which ends where some are missing."""
    cdef unsigned long long untold = sink.dropped - sink.admitted
    if not untold:
        return 0
    if sink.inside:
        return 0
    if sink.tail < sink.drop_mark:
        size[0] = min(size[0], <size_t>(sink.drop_mark - sink.tail))
        return 0
    if sink.head != sink.tail and not sink.closing and now_ns - sink.told_ns < TELL_NS:
        return 0
    sink.admitted = sink.dropped
    sink.told_ns = now_ns
    memcpy(blamed, sink.blamed, sizeof(sink.blamed))
    memset(sink.blamed, 0, sizeof(sink.blamed))
    return untold


cdef void await_lines(Sink *sink) noexcept nogil:
    """With the lock held: sleep until there is something to do."""
    cdef timespec when
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


cdef void *writer(void *argument) noexcept nogil:
    """The life of a sink's thread: write what is queued, in large pieces, outside the lock."""
    cdef Sink *sink = <Sink *>argument
    cdef size_t at, size
    cdef unsigned long long untold
    cdef int64_t before_ns, begun_ns = 0
    cdef Blamed blamed[BLAMED_MAX]
    # The reader may wait for this thread's lock: it must not lose the processor to others while it holds it. May fail.
    setpriority(PRIO_PROCESS, <unsigned int>syscall(SYS_gettid), -20)
    pthread_mutex_lock(&sink.lock)
    while True:
        await_lines(sink)
        if sink.head == sink.tail and sink.dropped == sink.admitted:
            break
        before_ns, begun_ns = begun_ns, monotonic_ns()
        at = sink.tail & (sink.capacity - 1)
        size = <size_t>min(sink.head - sink.tail, min(sink.capacity - at, <size_t>WRITE_MAX))
        untold = take_untold(sink, &size, begun_ns, blamed)
        pthread_mutex_unlock(&sink.lock)

        # A rotation, or a word about dropped lines, must not come inside a line.
        size = whole_lines(sink.ring + at, size)
        if untold and sink.failure:
            sink.lost += untold
        elif untold:
            tell_dropped(sink, untold, blamed)
        untold = write_piece(sink, sink.ring + at, size, begun_ns) if size else 0

        pthread_mutex_lock(&sink.lock)
        sink.dropped += untold
        sink.admitted += untold     # they are told of in another way
        move_tail(sink, size)
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


cdef class Source:
    def __cinit__(self, bytes label not None):
        strncpy(self.share.label, label[:LABEL_MAX - 1].decode("utf-8", "ignore").encode(), LABEL_MAX - 1)


cdef class Output:
    def __cinit__(self):
        self.count = 0
        self.closed = False
        self.family = <Sinks *>calloc(1, sizeof(Sinks))
        if self.family == NULL:
            raise MemoryError

    def __dealloc__(self):
        # Not before: whoever writes to a sink holds this object. A writer that still runs owns its sink.
        cdef int i
        cdef bint ended = True
        for i in range(self.count):
            if self.sinks[i].joined:
                free_sink(self.sinks[i])
            else:
                ended = False
        if ended:
            free(self.family)

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
        sink.sinks = self.family
        sink.number = self.count
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
        pthread_setname_np(sink.thread, b"writer-file" if sink.file != NULL else b"writer-fd")
        self.sinks[self.count] = sink
        self.count += 1
        self.family.all[self.family.count] = sink
        self.family.count += 1
        return 0

    def add_descriptor(self, int fd, int style, size_t capacity_bytes=32 << 20):
        if style not in (STYLE_JSON, STYLE_TEXT, STYLE_COLOUR):
            raise ValueError(f"unknown line style {style}")
        self.start(self.new_sink(fd, style, capacity_bytes))

    def add_file(self, str path, long max_bytes, int backups, size_t capacity_bytes=32 << 20):
        cdef bytes name = os.fsencode(path)
        cdef int failure
        cdef LogFile *file
        cdef Sink *sink
        if b"\0" in name or len(name) > 4000:
            raise ValueError(f"not a usable log file name: {path!r}")
        file = <LogFile *>calloc(1, sizeof(LogFile))
        if file == NULL:
            raise MemoryError
        file.fd, file.path, file.max_bytes, file.backups = -1, strdup(name), max_bytes, backups
        failure = file_open(file)
        try:
            if failure == EEXIST:
                raise FileExistsError(failure, "exists and is not a plain file of this user with one name", path)
            if failure:
                raise OSError(failure, os.strerror(failure), path)
            sink = self.new_sink(-1, STYLE_TEXT, capacity_bytes)
        except BaseException:
            file_close(file)
            file_free(file)
            raise
        sink.file = file
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
                    if self.sinks[i].file != NULL:
                        file_close(self.sinks[i].file)
                else:
                    done = False    # its output is stuck: the thread keeps its sink until the process ends
        return done


cdef void free_sink(Sink *sink) noexcept nogil:
    munmap(sink.ring, sink.capacity)
    pthread_mutex_destroy(&sink.lock)
    pthread_cond_destroy(&sink.wake)
    pthread_cond_destroy(&sink.written)
    if sink.file != NULL:
        file_close(sink.file)
        file_free(sink.file)
    free(sink)
