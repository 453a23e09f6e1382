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
from weakref import WeakValueDictionary

from argusd._output cimport Source
from argusd.includes.linux cimport SYS_gettid, syscall

cdef enum:
    LEAD_MAX = 0xF4         # the largest first byte of a UTF-8 sequence
    JSON_REST = 256         # bytes of a JSON line at the most, beside the texts that it is made of
    # Bytes of a message in text form: runtimes cut lines at 16 KiB, and the rest of one that is cut could look like a
    # line of ours. JSON needs no limit: no part of an object is one.
    TEXT_MAX = 15 * 1024


cdef bint buffer_grow(Buffer *buffer, size_t size) noexcept nogil:
    cdef size_t capacity = buffer.capacity
    cdef char *data
    if buffer.failed:
        return False
    while capacity < buffer.size + size:
        capacity = capacity * 2 if capacity else 1024
    data = <char *>realloc(buffer.data, capacity)
    if data == NULL:
        buffer.failed = True
        return False
    buffer.data = data
    buffer.capacity = capacity
    return True


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


cdef bint sanitize_into(Buffer *out, const char *name, size_t size) noexcept nogil:
    cdef const unsigned char *at = <const unsigned char *>name
    cdef const unsigned char *end = at + size
    cdef const unsigned char *plain
    cdef size_t n
    cdef unsigned int point
    cdef bint all_plain = True
    cdef char escaped[16]
    while at < end:
        plain = at
        while at < end and 0x20 <= at[0] < 0x7F:
            if at[0] == c'"' or at[0] == c'\\':
                all_plain = False
            at += 1
        if at > plain:
            buffer_add(out, <const char *>plain, <size_t>(at - plain))
            if at == end:
                break
        n = sequence_size(at, <size_t>(end - at))
        if n > 1:
            point = hostile_code_point(at, n)
            if point:
                all_plain = False
                buffer_add(out, escaped, <size_t>snprintf(escaped, sizeof(escaped), b"\\u%04x", point))
            else:
                buffer_add(out, <const char *>at, n)
            at += n
        else:
            all_plain = False
            if at[0] == c'\n':
                buffer_add(out, b"\\n", 2)
            elif at[0] == c'\r':
                buffer_add(out, b"\\r", 2)
            elif at[0] == c'\t':
                buffer_add(out, b"\\t", 2)
            else:
                escape_byte(out, at[0])
            at += 1
    return all_plain


cdef inline char *put(char *at, const char *data, size_t size) noexcept nogil:
    memcpy(at, data, size)
    return at + size


cdef inline char *put_text(char *at, Text text) noexcept nogil:
    """The inside of a JSON string, from sanitized text; it takes twice the room of the text at the most."""
    cdef const char *byte = text.data
    cdef const char *end = text.data + text.size
    if text.plain:
        return put(at, text.data, text.size)
    while byte < end:
        if byte[0] == c'"' or byte[0] == c'\\':
            at[0] = c'\\'
            at += 1
        at[0] = byte[0]
        at += 1
        byte += 1
    return at


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


cdef Text message_into(Buffer *out, const Lines *lines, const Text *fields) noexcept nogil:
    cdef const Segment *segment
    cdef Text value
    cdef bint plain = True
    cdef int i
    out.size = 0
    for i in range(lines.count):
        segment = &lines.segments[i]
        if segment.field == FIELD_LITERAL:
            value = segment.literal
        elif segment.field >= FIELD_POD:
            value = lines.fields[segment.field]
        else:
            value = fields[segment.field]
        plain = plain and value.plain and segment.fill_plain
        if segment.width == 0 and segment.precision < 0:
            buffer_add(out, value.data, value.size)
        else:
            padded_into(out, segment, value)
    value.data, value.size, value.plain = out.data, out.size, plain
    return value


cdef void json_into(Buffer *out, const Lines *lines, const Text *fields, const Stamp *stamp,
                    Text message) noexcept nogil:
    cdef Text path = fields[FIELD_PATH], file = fields[FIELD_FILE]
    cdef char *at
    if not buffer_room(out, JSON_REST + 2 * (message.size + path.size + file.size) + lines.json_tail.size):
        return
    at = out.data + out.size
    at = put(at, b'{"timestamp":"', 14)
    at = put(at, stamp.json, stamp.json_size)
    if lines.guard:
        at = put(at, b'","level":"INFO","logger":"janusd.events","message":"', 53)
    else:
        at = put(at, b'","level":"INFO","logger":"argusd.events","message":"', 53)
    at = put_text(at, message)
    if lines.guard:
        at = put(at, b'","response":"', 14)
        at = put_text(at, fields[FIELD_RESPONSE])
    at = put(at, b'","event":"', 11)
    at = put_text(at, fields[FIELD_EVENT])
    at = put(at, b'","ftype":"', 11)
    at = put_text(at, fields[FIELD_FTYPE])
    at = put(at, b'","path":"', 10)
    at = put_text(at, path)
    if not lines.guard:
        at = put(at, b'","file":"', 10)
        at = put_text(at, file)
    at = put(at, lines.json_tail.data, lines.json_tail.size)
    out.size = <size_t>(at - out.data)


cdef void cut_into(Buffer *out, Text message) noexcept nogil:
    """The beginning of a message that is too long, and how much is missing."""
    cdef size_t size = TEXT_MAX
    cdef char rest[64]
    while message.data[size] & 0xC0 == 0x80:    # not inside a character
        size -= 1
    buffer_add(out, message.data, size)
    buffer_add(out, rest, <size_t>snprintf(rest, sizeof(rest), b" [%zu more bytes cut]\n", message.size - size))


cdef void text_into(Buffer *out, const Stamp *stamp, Text message, bint colour) noexcept nogil:
    if colour:
        buffer_add(out, b"\033[32m", 5)
    buffer_add(out, stamp.prefix, stamp.prefix_size)
    if colour:
        buffer_add(out, b"\033[0m", 4)
    if message.size <= TEXT_MAX:
        buffer_add(out, message.data, message.size)
        buffer_add(out, b"\n", 1)
    else:
        cut_into(out, message)


cdef void put_microseconds(char *at, int microseconds) noexcept nogil:
    """Six digits."""
    cdef int i
    for i in range(5, -1, -1):
        at[i] = <char>(c'0' + microseconds % 10)
        microseconds //= 10


cdef void stamp_second(Stamp *stamp, time_t second, long thread_id, const char *place) noexcept nogil:
    cdef tm parts
    gmtime_r(&second, &parts)
    stamp.json_at = strftime(stamp.json, sizeof(stamp.json), b"%Y-%m-%dT%H:%M:%S.", &parts)
    stamp.json_size = stamp.json_at + <size_t>snprintf(
        stamp.json + stamp.json_at, sizeof(stamp.json) - stamp.json_at, b"000000Z")
    localtime_r(&second, &parts)
    stamp.prefix_at = strftime(stamp.prefix, sizeof(stamp.prefix), b"I%m%d %H:%M:%S.", &parts)
    stamp.prefix_size = stamp.prefix_at + <size_t>snprintf(
        stamp.prefix + stamp.prefix_at, sizeof(stamp.prefix) - stamp.prefix_at, b"000000 %ld %s] ", thread_id, place)
    stamp.second = second


cdef void stamp_set(Stamp *stamp, long long realtime_ns, long thread_id, const char *place) noexcept nogil:
    cdef time_t second = <time_t>(realtime_ns // 1000000000)
    cdef int microseconds = <int>(realtime_ns % 1000000000 // 1000)
    if stamp.second != second or stamp.json_size == 0:
        stamp_second(stamp, second, thread_id, place)
    put_microseconds(stamp.json + stamp.json_at, microseconds)
    put_microseconds(stamp.prefix + stamp.prefix_at, microseconds)


cdef bint is_plain(bytes text):
    return b'"' not in text and b"\\" not in text


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


# The sources of lines that are alive, so that all subjects in a container share one.
cdef object SOURCES = WeakValueDictionary()


cdef Source source_of(str kind, bytes pod, bytes node, bytes container):
    cdef Source source = SOURCES.get((kind, pod, node, container))
    if source is None:
        source = Source(b"(%s:%s)" % (pod, node) + (b" " + container[:12] if container else b""))
        SOURCES[kind, pod, node, container] = source
    return source


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
        self.source = source_of(kind, clean["pod"], clean["node"], clean["container"])
        self.lines.share = &self.source.share
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
        kept.plain = is_plain(text)
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
                segment.fill_plain = True
                segment.precision = -1
            else:
                name, fill, align, width, precision = item
                if not 1 <= len(fill) <= 4 or align not in ("<", "^", ">"):
                    raise ValueError(f"not a format segment: {item!r}")
                if sanitized(fill) != fill:
                    fill = b"?"     # no control character gets into a line as padding either
                segment.field = numbers[name]
                segment.fill_size = <int>len(fill)
                memcpy(segment.fill, <const char *>fill, <size_t>len(fill))
                segment.fill_plain = is_plain(fill)
                segment.align = ord(align)
                segment.width = width
                segment.precision = precision
            self.lines.count += 1
        return 0

    cdef bytes encode(self, str form, str event, str ftype, bytes path, bytes file, str response,
                      long long realtime_ns):
        cdef Text fields[FIELDS]
        cdef Text text
        cdef Stamp stamp
        cdef Buffer message, line
        cdef bytes event_bytes = event.encode(), ftype_bytes = ftype.encode(), response_bytes = response.encode()
        cdef bytes path_bytes = sanitized(path), file_bytes = sanitized(file)
        cdef bytes sep = b"/" if file and path != b"/" else b""
        memset(&message, 0, sizeof(Buffer))
        memset(&line, 0, sizeof(Buffer))
        memset(fields, 0, sizeof(fields))
        memset(&stamp, 0, sizeof(Stamp))
        for number, value in ((FIELD_EVENT, event_bytes), (FIELD_FTYPE, ftype_bytes), (FIELD_PATH, path_bytes),
                              (FIELD_FILE, file_bytes), (FIELD_SEP, sep), (FIELD_RESPONSE, response_bytes)):
            fields[<int>number].data = <bytes>value
            fields[<int>number].size = <size_t>len(value)
            fields[<int>number].plain = is_plain(value)
        try:
            text = message_into(&message, &self.lines, fields)
            if form == "message":
                return text.data[:text.size] if text.size else b""
            stamp_set(&stamp, realtime_ns, syscall(SYS_gettid),
                      b"_fanotify.pyx:1" if self.lines.guard else b"_inotify.pyx:1")
            if form == "json":
                json_into(&line, &self.lines, fields, &stamp, text)
            else:
                text_into(&line, &stamp, text, False)
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
