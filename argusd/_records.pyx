# cython: language_level=3, boundscheck=False, wraparound=False
r"""The line of an event, encoded natively.

A file name is bytes from a hostile container. Everything that goes into a line, literal text included, has first gone
through ``sanitize_into``: it is then valid UTF-8 without any character that could end a line, move a cursor or turn
text around. So a text line is its prefix, the message and a newline, and JSON needs no more than ``\\`` and ``\"``.
"""

from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy, memset
from libc.stdio cimport snprintf
from libc.time cimport gmtime_r, localtime_r, strftime, time_t, tm

import json

from argusd.includes.linux cimport SYS_gettid, syscall

cdef enum:
    LEAD_MAX = 0xF4         # the largest first byte of a UTF-8 sequence


cdef bint buffer_room(Buffer *buffer, size_t size) noexcept nogil:
    """Make room for ``size`` more bytes; False when memory ran out."""
    cdef size_t capacity = buffer.capacity
    cdef char *data
    if buffer.failed:
        return False
    if buffer.size + size <= capacity:
        return True
    while capacity < buffer.size + size:
        capacity = capacity * 2 if capacity else 1024
    data = <char *>realloc(buffer.data, capacity)
    if data == NULL:
        buffer.failed = True
        return False
    buffer.data = data
    buffer.capacity = capacity
    return True


cdef void buffer_add(Buffer *buffer, const char *data, size_t size) noexcept nogil:
    if buffer_room(buffer, size):
        memcpy(buffer.data + buffer.size, data, size)
        buffer.size += size


cdef void buffer_free(Buffer *buffer) noexcept nogil:
    free(buffer.data)
    memset(buffer, 0, sizeof(Buffer))


cdef inline size_t sequence_size(const unsigned char *at, size_t left) noexcept nogil:
    """Bytes of the well-formed UTF-8 sequence at ``at`` (Unicode 15, table 3-7), 0 when there is none."""
    cdef unsigned char lead = at[0]
    cdef unsigned char low = 0x80, high = 0xBF
    cdef size_t size, i
    if lead < 0x80:
        return 1
    if lead < 0xC2 or lead > LEAD_MAX:
        return 0
    size = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
    if left < size:
        return 0
    if lead == 0xE0:
        low = 0xA0
    elif lead == 0xED:
        high = 0x9F
    elif lead == 0xF0:
        low = 0x90
    elif lead == 0xF4:
        high = 0x8F
    if at[1] < low or at[1] > high:
        return 0
    for i in range(2, size):
        if at[i] & 0xC0 != 0x80:
            return 0
    return size


cdef inline unsigned int hostile_code_point(const unsigned char *at, size_t size) noexcept nogil:
    """The code point at ``at`` when it must not reach a terminal or a log reader, else 0.

    These are C1 controls, line and paragraph separators, and the marks that reorder text (Unicode UAX 9).
    """
    cdef unsigned int point
    if size == 2 and at[0] == 0xC2 and at[1] < 0xA0:
        return at[1]
    if size == 2 and at[0] == 0xD8 and at[1] == 0x9C:
        return 0x061C
    if size == 3 and at[0] == 0xE2:
        point = 0x2000 | (<unsigned int>(at[1] & 0x3F) << 6) | (at[2] & 0x3F)
        if 0x200E <= point <= 0x200F or 0x2028 <= point <= 0x202E or 0x2066 <= point <= 0x2069:
            return point
    return 0


cdef inline void escape_byte(Buffer *out, unsigned char byte) noexcept nogil:
    """Add ``\\xNN``. Without snprintf, which is slow: a name may be made of nothing else."""
    cdef const char *digits = b"0123456789abcdef"
    cdef char *at
    if buffer_room(out, 4):
        at = out.data + out.size
        at[0], at[1], at[2], at[3] = c'\\', c'x', digits[byte >> 4], digits[byte & 15]
        out.size += 4


cdef void sanitize_into(Buffer *out, const char *name, size_t size) noexcept nogil:
    cdef const unsigned char *at = <const unsigned char *>name
    cdef const unsigned char *end = at + size
    cdef const unsigned char *plain
    cdef size_t n
    cdef unsigned int point
    cdef char escaped[16]
    while at < end:
        plain = at
        while at < end and 0x20 <= at[0] < 0x7F:
            at += 1
        if at > plain:
            buffer_add(out, <const char *>plain, <size_t>(at - plain))
            if at == end:
                return
        n = sequence_size(at, <size_t>(end - at))
        if n > 1:
            point = hostile_code_point(at, n)
            if point:
                buffer_add(out, escaped, <size_t>snprintf(escaped, sizeof(escaped), b"\\u%04x", point))
            else:
                buffer_add(out, <const char *>at, n)
            at += n
        else:
            if at[0] == c'\n':
                buffer_add(out, b"\\n", 2)
            elif at[0] == c'\r':
                buffer_add(out, b"\\r", 2)
            elif at[0] == c'\t':
                buffer_add(out, b"\\t", 2)
            else:
                escape_byte(out, at[0])
            at += 1


cdef void json_escape_into(Buffer *out, const char *text, size_t size) noexcept nogil:
    """The inside of a JSON string, from sanitized text."""
    cdef const char *at = text
    cdef const char *end = text + size
    cdef const char *plain
    while at < end:
        plain = at
        while at < end and at[0] != c'"' and at[0] != c'\\':
            at += 1
        buffer_add(out, plain, <size_t>(at - plain))
        if at < end:
            buffer_add(out, b"\\", 1)
            buffer_add(out, at, 1)
            at += 1


cdef void padded_into(Buffer *out, const Segment *segment, Text value) noexcept nogil:
    """One field with precision and width, both counted in code points."""
    cdef const char *at = value.data
    cdef const char *end = value.data + value.size
    cdef int points = 0, before = 0, after = 0, _i
    while at < end and (segment.precision < 0 or points < segment.precision):
        at += 1
        while at < end and (<unsigned char>at[0] & 0xC0) == 0x80:
            at += 1
        points += 1
    if segment.width > points:
        after = segment.width - points
        if segment.align == c'>':
            before = after
        elif segment.align == c'^':
            before = after // 2
        after -= before
    for _i in range(before):
        buffer_add(out, segment.fill, <size_t>segment.fill_size)
    buffer_add(out, value.data, <size_t>(at - value.data))
    for _i in range(after):
        buffer_add(out, segment.fill, <size_t>segment.fill_size)


cdef void message_into(Buffer *out, const Lines *lines, const Text *fields) noexcept nogil:
    """The message; ``fields`` are sanitized and indexed by FIELD_*, fixed ones are taken from ``lines``."""
    cdef const Segment *segment
    cdef Text value
    cdef int i
    for i in range(lines.count):
        segment = &lines.segments[i]
        if segment.field == FIELD_LITERAL:
            buffer_add(out, segment.literal.data, segment.literal.size)
            continue
        if segment.field >= FIELD_POD:
            value = lines.fields[segment.field]
        else:
            value = fields[segment.field]
        if segment.width == 0 and segment.precision < 0:
            buffer_add(out, value.data, value.size)
        else:
            padded_into(out, segment, value)


cdef void json_into(Buffer *out, const Lines *lines, const Text *fields, const Stamp *stamp,
                    const char *message, size_t message_size) noexcept nogil:
    buffer_add(out, b'{"timestamp":"', 14)
    buffer_add(out, stamp.json, stamp.json_size)
    if lines.guard:
        buffer_add(out, b'","level":"INFO","logger":"janusd.events","message":"', 53)
    else:
        buffer_add(out, b'","level":"INFO","logger":"argusd.events","message":"', 53)
    json_escape_into(out, message, message_size)
    if lines.guard:
        buffer_add(out, b'","response":"', 14)
        buffer_add(out, fields[FIELD_RESPONSE].data, fields[FIELD_RESPONSE].size)
    buffer_add(out, b'","event":"', 11)
    buffer_add(out, fields[FIELD_EVENT].data, fields[FIELD_EVENT].size)
    buffer_add(out, b'","ftype":"', 11)
    buffer_add(out, fields[FIELD_FTYPE].data, fields[FIELD_FTYPE].size)
    buffer_add(out, b'","path":"', 10)
    json_escape_into(out, fields[FIELD_PATH].data, fields[FIELD_PATH].size)
    if not lines.guard:
        buffer_add(out, b'","file":"', 10)
        json_escape_into(out, fields[FIELD_FILE].data, fields[FIELD_FILE].size)
    buffer_add(out, lines.json_tail.data, lines.json_tail.size)


cdef void text_into(Buffer *out, const Stamp *stamp, const char *message, size_t message_size,
                    bint colour) noexcept nogil:
    if colour:
        buffer_add(out, b"\033[32m", 5)
    buffer_add(out, stamp.prefix, stamp.prefix_size)
    if colour:
        buffer_add(out, b"\033[0m", 4)
    buffer_add(out, message, message_size)
    buffer_add(out, b"\n", 1)


cdef void stamp_set(Stamp *stamp, long long realtime_ns, long thread_id, const char *place) noexcept nogil:
    cdef time_t seconds = <time_t>(realtime_ns // 1000000000)
    cdef int microseconds = <int>(realtime_ns % 1000000000 // 1000)
    cdef tm parts
    cdef size_t n
    gmtime_r(&seconds, &parts)
    n = strftime(stamp.json, sizeof(stamp.json), b"%Y-%m-%dT%H:%M:%S", &parts)
    stamp.json_size = n + <size_t>snprintf(stamp.json + n, sizeof(stamp.json) - n, b".%06dZ", microseconds)
    localtime_r(&seconds, &parts)
    n = strftime(stamp.prefix, sizeof(stamp.prefix), b"I%m%d %H:%M:%S", &parts)
    stamp.prefix_size = n + <size_t>snprintf(
        stamp.prefix + n, sizeof(stamp.prefix) - n, b".%06d %ld %s] ", microseconds, thread_id, place)


cdef bytes sanitized(bytes name):
    cdef Buffer out
    memset(&out, 0, sizeof(out))
    sanitize_into(&out, name, <size_t>len(name))
    try:
        if out.failed:
            raise MemoryError
        return out.data[:out.size] if out.size else b""
    finally:
        buffer_free(&out)


def sanitize(bytes name not None):
    return sanitized(name)


cdef dict SHARED_FIELDS = {
    "event": FIELD_EVENT,
    "ftype": FIELD_FTYPE,
    "path": FIELD_PATH,
    "pod": FIELD_POD,
    "node": FIELD_NODE,
    "tags": FIELD_TAGS,
}
cdef dict WATCH_FIELDS = SHARED_FIELDS | {"file": FIELD_FILE, "sep": FIELD_SEP}
cdef dict GUARD_FIELDS = SHARED_FIELDS | {"response": FIELD_RESPONSE}


cdef class Encoder:
    def __cinit__(self, segments, str pod not None, str node not None, str name not None,
                  str container not None, tags, str kind not None="watcher"):
        if kind not in ("watcher", "guard"):
            raise ValueError(f"not a kind of line: {kind!r}")
        self.lines.guard = kind == "guard"
        self.owned = []
        clean = {key: sanitized(value.encode()) for key, value in
                 {"pod": pod, "node": node, kind: name, "container": container}.items()}
        clean_tags = [(sanitized(key.encode()), sanitized(value.encode())) for key, value in tags]
        self.lines.fields[FIELD_POD] = self.keep(clean["pod"])
        self.lines.fields[FIELD_NODE] = self.keep(clean["node"])
        self.lines.fields[FIELD_TAGS] = self.keep(b",".join(b"%s=%s" % pair for pair in clean_tags))
        tail = {key: value.decode() for key, value in clean.items()}
        tail["tags"] = {key.decode(): value.decode() for key, value in clean_tags}
        text = json.dumps(tail, ensure_ascii=False, separators=(",", ":"))
        self.lines.json_tail = self.keep(b'",' + text[1:].encode() + b"\n")
        self.compile(segments)

    def __dealloc__(self):
        free(self.lines.segments)

    cdef Text keep(self, bytes text):
        cdef Text kept
        self.owned.append(text)
        kept.data = text
        kept.size = <size_t>len(text)
        return kept

    cdef int compile(self, segments) except -1:
        cdef Segment *segment
        cdef bytes fill
        cdef dict numbers = GUARD_FIELDS if self.lines.guard else WATCH_FIELDS
        self.lines.segments = <Segment *>calloc(max(1, len(segments)), sizeof(Segment))
        if self.lines.segments == NULL:
            raise MemoryError
        for item in segments:
            segment = &self.lines.segments[self.lines.count]
            if isinstance(item, bytes):
                segment.field = FIELD_LITERAL
                segment.literal = self.keep(sanitized(item))
            else:
                name, fill, align, width, precision = item
                if not 1 <= len(fill) <= 4 or align not in ("<", "^", ">"):
                    raise ValueError(f"not a format segment: {item!r}")
                if sanitized(fill) != fill:
                    fill = b"?"     # no control character gets into a line as padding either
                segment.field = numbers[name]
                segment.fill_size = <int>len(fill)
                memcpy(segment.fill, <const char *>fill, <size_t>len(fill))
                segment.align = ord(align)
                segment.width = width
                segment.precision = precision
            self.lines.count += 1
        return 0

    cdef bytes encode(self, str form, str event, str ftype, bytes path, bytes file, str response,
                      long long realtime_ns):
        cdef Text fields[FIELDS]
        cdef Stamp stamp
        cdef Buffer message, line
        cdef bytes event_bytes = event.encode(), ftype_bytes = ftype.encode(), response_bytes = response.encode()
        cdef bytes path_bytes = sanitized(path), file_bytes = sanitized(file)
        cdef bytes sep = b"/" if file and path != b"/" else b""
        memset(&message, 0, sizeof(Buffer))
        memset(&line, 0, sizeof(Buffer))
        memset(fields, 0, sizeof(fields))
        for number, text in ((FIELD_EVENT, event_bytes), (FIELD_FTYPE, ftype_bytes), (FIELD_PATH, path_bytes),
                             (FIELD_FILE, file_bytes), (FIELD_SEP, sep), (FIELD_RESPONSE, response_bytes)):
            fields[<int>number].data = <bytes>text
            fields[<int>number].size = <size_t>len(text)
        try:
            message_into(&message, &self.lines, fields)
            if form == "message":
                return message.data[:message.size] if message.size else b""
            stamp_set(&stamp, realtime_ns, syscall(SYS_gettid),
                      b"_fanotify.pyx:1" if self.lines.guard else b"_inotify.pyx:1")
            if form == "json":
                json_into(&line, &self.lines, fields, &stamp, message.data, message.size)
            else:
                text_into(&line, &stamp, message.data, message.size, False)
            return line.data[:line.size]
        finally:
            buffer_free(&message)
            buffer_free(&line)

    def message(self, str event not None, str ftype not None, bytes path not None, bytes file not None=b"",
                str response not None=""):
        return self.encode("message", event, ftype, path, file, response, 0)

    def json_line(self, str event not None, str ftype not None, bytes path not None, bytes file not None,
                  long long realtime_ns, str response not None=""):
        return self.encode("json", event, ftype, path, file, response, realtime_ns)

    def text_line(self, str event not None, str ftype not None, bytes path not None, bytes file not None,
                  long long realtime_ns, str response not None=""):
        return self.encode("text", event, ftype, path, file, response, realtime_ns)
