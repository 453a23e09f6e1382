# cython: language_level=3, boundscheck=False, wraparound=False
"""Lines and counts: what becomes of an event that a subscription asked for.

Only the reader thread comes here, with Core's lock held. A line is encoded once for each sink; text and JSON share the
message. Nothing here waits: a sink that is full drops.
"""

from libc.string cimport memset, strlen

from argusd._output cimport STYLE_COLOUR, STYLE_JSON, sink_admits, sink_append, sink_refuse
from argusd._records cimport (
    FIELDS,
    FIELD_EVENT,
    FIELD_FILE,
    FIELD_FTYPE,
    FIELD_PATH,
    FIELD_SEP,
    buffer_free,
    json_into,
    message_into,
    sanitize_into,
    text_into,
)
from argusd.engine.core cimport Subscription
from argusd.engine.tree cimport node_path
from argusd.includes.linux cimport IN_ISDIR, lowest_bit
from argusd.includes.pthread cimport add_u64


cdef enum:
    LINES_FULL = 64 * 1024          # bytes of lines handed to a sink at once


cdef const char **EVENT_NAMES = [
    b"ACCESS", b"MODIFY", b"ATTRIB", b"CLOSE_WRITE", b"CLOSE_NOWRITE", b"OPEN", b"MOVED_FROM", b"MOVED_TO", b"CREATE",
    b"DELETE", b"DELETE_SELF", b"MOVE_SELF",
]                                   # by the number of the kernel's bit


cdef Text path_text(Reader *reader, uint32_t node) noexcept nogil:
    """The node's sanitized path, kept from event to event."""
    cdef Core *core = reader.core
    cdef CachedPath *cached = &reader.paths[node & (PATHS - 1)]
    cdef Buffer raw
    cdef Text text
    if cached.node != node or cached.serial != core.nodes[node].serial or cached.generation != core.generation:
        memset(&raw, 0, sizeof(raw))
        node_path(core, node, &raw)
        cached.text.size = 0
        cached.text.failed = False
        cached.plain = sanitize_into(&cached.text, raw.data, raw.size)
        buffer_free(&raw)
        cached.node = node
        cached.serial = core.nodes[node].serial
        cached.generation = core.generation
    text.data, text.size, text.plain = cached.text.data, cached.text.size, cached.plain
    return text


cdef void flush_lines(Reader *reader, int i) noexcept nogil:
    if reader.lines[i].size:
        sink_append(reader.sinks[i], reader.lines[i].data, reader.lines[i].size, reader.line_counts[i])
        reader.lines[i].size = 0
        reader.line_counts[i] = 0


cdef void emit(Reader *reader, uint32_t node, uint32_t bit, bint directory, const char *name,
               size_t size) noexcept nogil:
    """Report an event of a watched file or directory, or (with a name) of an entry of the directory."""
    cdef Subscription *subscription = reader.core.nodes[node].root.subscription
    if subscription.on and subscription.mask & bit and not reader.core.nodes[node].root.mute:
        write_out(reader, subscription, bit, directory, path_text(reader, node), name, size)


cdef void emit_subject(Reader *reader, const Root *root, uint32_t bit) noexcept nogil:
    """Report that a subject path has come to stand for another file."""
    cdef Text path
    if not root.subscription.on or not root.subscription.mask & bit:
        return
    reader.subject.size = 0
    path.plain = sanitize_into(&reader.subject, root.path, root.path_size)
    path.data, path.size = reader.subject.data, reader.subject.size
    write_out(reader, root.subscription, bit, root.directory, path, NULL, 0)


cdef inline void field(Text *text, const char *data, size_t size) noexcept nogil:
    """A word of ours."""
    text.data, text.size, text.plain = data, size, True


cdef void write_out(Reader *reader, Subscription *subscription, uint32_t bit, bint directory, Text path,
                    const char *name, size_t size) noexcept nogil:
    """Count one event of a subscription, and write its line to every sink."""
    cdef Text fields[FIELDS]
    cdef Text message
    cdef int kind = lowest_bit(bit), i
    cdef size_t before
    add_u64(&subscription.counter.counts[kind], 1)
    reader.counted = True
    reader.reported += 1
    reader.file.size = 0
    fields[FIELD_FILE].plain = sanitize_into(&reader.file, name, size)
    fields[FIELD_FILE].data = reader.file.data
    if not reader.file.size:
        fields[FIELD_FILE].data = b""       # there is no buffer before the first name
    fields[FIELD_FILE].size = reader.file.size
    field(&fields[FIELD_EVENT], EVENT_NAMES[kind], strlen(EVENT_NAMES[kind]))
    field(&fields[FIELD_FTYPE], b"directory" if directory else b"file", 9 if directory else 4)
    field(&fields[FIELD_SEP], b"/", 1 if size and path.size > 1 else 0)     # the root directory ends in one itself
    fields[FIELD_PATH] = path
    message = message_into(&reader.message, subscription.lines, fields)
    for i in range(reader.sink_count):
        before = reader.lines[i].size
        if reader.sinks[i].style == STYLE_JSON:
            json_into(&reader.lines[i], subscription.lines, fields, &reader.stamp, message)
        else:
            text_into(&reader.lines[i], &reader.stamp, message, reader.sinks[i].style == STYLE_COLOUR)
        if not sink_admits(reader.sinks[i], subscription.lines.share, before, reader.lines[i].size - before):
            reader.lines[i].size = before
            sink_refuse(reader.sinks[i], subscription.lines.share)
            continue
        reader.line_counts[i] += 1
        if reader.lines[i].size >= LINES_FULL:
            flush_lines(reader, i)


cdef void report(Reader *reader, uint32_t node, const inotify_event *event, size_t size) noexcept nogil:
    """Report a kernel event, once to each subscription however many of its paths name the inode."""
    cdef Subscription *subscription = reader.core.nodes[node].root.subscription
    cdef uint32_t bits = event.mask & subscription.mask
    if not bits or subscription.reported == reader.number:
        return
    subscription.reported = reader.number
    emit(reader, node, bits & (~bits + 1), (event.mask & IN_ISDIR) != 0, event.name, size)
