# cython: language_level=3, boundscheck=False, wraparound=False
"""The reporter thread: it makes the lines of what was answered, and frees what the responders are done with.

Nobody waits for it. When it cannot keep up, a responder drops lines and counts them.
"""

from libc.stdint cimport int64_t
from libc.stdlib cimport free
from libc.string cimport memset

from argusd._output cimport STYLE_COLOUR, STYLE_JSON, sink_admits, sink_append, sink_refuse
from argusd._records cimport (
    FIELDS,
    FIELD_EVENT,
    FIELD_FTYPE,
    FIELD_PATH,
    FIELD_RESPONSE,
    Buffer,
    Stamp,
    Text,
    buffer_free,
    json_into,
    message_into,
    sanitize_into,
    stamp_set,
    text_into,
)
from argusd.guarding.marks cimport strays_clear, strays_wait
from argusd.guarding.table cimport NOTE_END, NOTE_REMOVE, NOTE_SWITCH, RING, Note, Record, entry_free
from argusd.includes.fanotify cimport stack_push, stack_take
from argusd.includes.linux cimport POLLIN, SYS_gettid, poll, pollfd, read, syscall, usleep
from argusd.includes.pthread cimport load_int, load_pointer, load_u64, store_int, store_u64, swap_int


cdef enum:
    LINES_FULL = 64 * 1024          # bytes of lines handed to a sink at once
    NAP_US = 1000


# What the thread works with.
cdef struct Desk:
    Reporter *reporter
    Stamp stamp
    int64_t stamp_ns
    long thread_id
    Buffer path
    Buffer message
    Buffer lines[SINKS_MAX]
    unsigned long long counts[SINKS_MAX]


cdef void hand_over(Desk *desk, int i) noexcept nogil:
    if desk.lines[i].size:
        sink_append(desk.reporter.sinks[i], desk.lines[i].data, desk.lines[i].size, desk.counts[i])
        desk.lines[i].size = 0
        desk.counts[i] = 0


cdef void field(Text *text, const char *data, size_t size, bint plain) noexcept nogil:
    text.data, text.size, text.plain = data, size, plain


cdef void write_line(Desk *desk, const Record *record) noexcept nogil:
    cdef Text fields[FIELDS]
    cdef Text message
    cdef size_t before
    cdef bint plain
    cdef int i
    if record.realtime_ns != desk.stamp_ns:
        desk.stamp_ns = record.realtime_ns
        stamp_set(&desk.stamp, record.realtime_ns, desk.thread_id, b"_fanotify.pyx:1")
    desk.path.size = 0
    plain = sanitize_into(&desk.path, <const char *>record + sizeof(Record), record.path_size)
    memset(fields, 0, sizeof(fields))
    field(&fields[FIELD_RESPONSE], b"DENY" if record.denied else b"ALLOW", 4 if record.denied else 5, True)
    field(&fields[FIELD_EVENT], b"ACCESS_PERM" if record.access else b"OPEN_PERM", 11 if record.access else 9, True)
    field(&fields[FIELD_FTYPE], b"directory" if record.directory else b"file", 9 if record.directory else 4, True)
    field(&fields[FIELD_PATH], desk.path.data, desk.path.size, plain)
    message = message_into(&desk.message, record.subject.lines, fields)
    for i in range(desk.reporter.sink_count):
        before = desk.lines[i].size
        if desk.reporter.sinks[i].style == STYLE_JSON:
            json_into(&desk.lines[i], record.subject.lines, fields, &desk.stamp, message)
        else:
            text_into(&desk.lines[i], &desk.stamp, message, desk.reporter.sinks[i].style == STYLE_COLOUR)
        if not sink_admits(desk.reporter.sinks[i], record.subject.lines.share, before, desk.lines[i].size - before):
            desk.lines[i].size = before
            sink_refuse(desk.reporter.sinks[i], record.subject.lines.share)
            continue
        desk.counts[i] += 1
        if desk.lines[i].size >= LINES_FULL:
            hand_over(desk, i)
    desk.reporter.lines += 1


cdef void notes_free(Reporter *reporter, Note *note) noexcept nogil:
    cdef Note *after
    while note != NULL:
        after = note.next
        if note.kind == NOTE_REMOVE:
            entry_free(note.entry)
        elif note.kind == NOTE_SWITCH:
            free(note.subjects)
        elif note.kind == NOTE_END:
            stack_push(&reporter.ended, <void **>&note.subject.next, note.subject)
        free(note)
        note = after


cdef bint drain(Desk *desk, Group *group) noexcept nogil:
    """Write what a responder has left; True when there was something."""
    cdef Note *notes = <Note *>stack_take(&group.spent)     # before the ring: then no line is of what they end
    cdef unsigned long long tail = group.tail, head = load_u64(&group.head)
    cdef const Record *record
    cdef bint worked = notes != NULL or tail != head
    cdef int i
    while tail != head:
        record = <const Record *>(group.ring + (tail & (RING - 1)))
        if not record.filler:
            write_line(desk, record)
        tail += record.size
        store_u64(&group.tail, tail)
    for i in range(desk.reporter.sink_count):
        hand_over(desk, i)
    notes_free(desk.reporter, notes)
    strays_clear(group)
    return worked


cdef bint drain_all(Desk *desk) noexcept nogil:
    cdef bint worked = False
    cdef Group *group
    cdef int i
    for i in range(GROUPS):
        group = <Group *>load_pointer(&desk.reporter.groups[i])
        if group != NULL:
            worked = drain(desk, group) or worked
    return worked


cdef bint reporter_idle(Reporter *reporter) noexcept nogil:
    """Has everything been taken that the responders have left?"""
    cdef Group *group
    cdef int i
    for i in range(GROUPS):
        group = <Group *>load_pointer(&reporter.groups[i])
        if group != NULL and (load_u64(&group.head) != load_u64(&group.tail)
                              or load_pointer(&group.spent) != NULL or strays_wait(group)):
            return False
    return True


cdef void *reporter_main(void *argument) noexcept nogil:
    cdef Desk desk
    cdef Reporter *reporter = <Reporter *>argument
    cdef unsigned long long count
    cdef pollfd waiter
    cdef bint worked
    cdef int i
    memset(&desk, 0, sizeof(desk))
    desk.reporter = reporter
    desk.thread_id = syscall(SYS_gettid)
    waiter.fd, waiter.events = reporter.fd, POLLIN
    while True:
        worked = drain_all(&desk)
        if load_int(&reporter.stopping) and not worked:
            break
        if worked:
            usleep(NAP_US)              # or each answer would be followed by a wake-up
            continue
        swap_int(&reporter.waits, 1)    # seen by whoever adds something from here on
        if reporter_idle(reporter):
            poll(&waiter, 1, -1)
            read(reporter.fd, &count, sizeof(count))
        store_int(&reporter.waits, 0)
    buffer_free(&desk.path)
    buffer_free(&desk.message)
    for i in range(SINKS_MAX):
        buffer_free(&desk.lines[i])
    return NULL
