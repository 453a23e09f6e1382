# cython: language_level=3, boundscheck=False, wraparound=False
"""The responder's tables, and how they change.

The responder must not wait for a lock, so nobody else touches the tables while it runs. A change comes as a note on a
stack that is pushed to and taken with one atomic operation. The responder takes the notes after it has read events and
before it answers them: whoever sends a note and then sets a mark knows that no event of that mark is answered without
the note. It neither allocates nor frees: what is of no use any more goes on to the reporter.
"""

from libc.stdlib cimport calloc, free

from argusd.includes.fanotify cimport FAN_ACCESS_PERM, FAN_OPEN_PERM, stack_push, stack_take
from argusd.includes.linux cimport write


cdef uint64_t hash_text(const char *text, size_t size) noexcept nogil:
    cdef uint64_t value = <uint64_t>14695981039346656037
    cdef size_t i
    for i in range(size):
        value = (value ^ <unsigned char>text[i]) * <uint64_t>1099511628211
    return value


cdef uint32_t inode_bucket(uint64_t device, uint64_t inode) noexcept nogil:
    cdef uint64_t value = (inode ^ (device << 40) ^ device) * <uint64_t>0x9E3779B97F4A7C15
    return <uint32_t>(value >> 52) & (BUCKETS - 1)


cdef void entry_free(Entry *entry) noexcept nogil:
    if entry != NULL:
        free(entry.place)
        free(entry.path)
        free(entry.name)
        free(entry)


cdef bint note_send(Group *group, int kind, Entry *entry, Subject *subject) noexcept nogil:
    """Tell the responder of a change; False when memory ran out."""
    cdef Note *note = <Note *>calloc(1, sizeof(Note))
    if note == NULL:
        return False
    note.kind, note.entry, note.subject = kind, entry, subject
    note_push(group, note)
    return True


cdef void note_push(Group *group, Note *note) noexcept nogil:
    cdef unsigned long long one = 1
    stack_push(&group.inbox, <void **>&note.next, note)
    write(group.wake_fd, &one, sizeof(one))


cdef inline uint32_t bit_of(int event) noexcept nogil:
    return <uint32_t>(FAN_OPEN_PERM if event == OPEN else FAN_ACCESS_PERM)


cdef void count(Group *group, const Entry *entry, int by) noexcept nogil:
    """Keep the sums up to date by which many an event is decided without a name."""
    cdef int event
    if not entry.subject.on:
        return
    if entry.subject.audit:
        group.audited += <uint32_t>by
    if entry.kind == ITSELF:
        return
    group.covering += <uint32_t>by
    for event in range(2):
        if entry.deny and entry.bits & bit_of(event):
            group.denying[event] += <uint32_t>by


cdef void entry_add(Group *group, Entry *entry) noexcept nogil:
    cdef Entry **bucket = &group.by_inode[inode_bucket(entry.device, entry.inode)]
    entry.next_by_inode = bucket[0]
    bucket[0] = entry
    if entry.kind != ITSELF:
        bucket = &group.by_place[entry.place_hash & (BUCKETS - 1)]
        entry.next_by_place = bucket[0]
        bucket[0] = entry
    entry.next_of_subject = entry.subject.entries
    entry.subject.entries = entry
    count(group, entry, 1)


cdef void entry_remove(Group *group, Entry *entry) noexcept nogil:
    cdef Entry **link = &group.by_inode[inode_bucket(entry.device, entry.inode)]
    while link[0] != entry:
        link = &link[0].next_by_inode
    link[0] = entry.next_by_inode
    if entry.kind != ITSELF:
        link = &group.by_place[entry.place_hash & (BUCKETS - 1)]
        while link[0] != entry:
            link = &link[0].next_by_place
        link[0] = entry.next_by_place
    link = &entry.subject.entries
    while link[0] != entry:
        link = &link[0].next_of_subject
    link[0] = entry.next_of_subject
    count(group, entry, -1)


cdef void recount(Group *group, const Subject *subject, int by) noexcept nogil:
    cdef const Entry *entry = subject.entries
    while entry != NULL:
        count(group, entry, by)
        entry = entry.next_of_subject


cdef void switch(Group *group, Subject *subject, bint on) noexcept nogil:
    if subject.on == on:
        return
    if not on:
        recount(group, subject, -1)
    subject.on = on
    if on:
        recount(group, subject, 1)


cdef void note_carry_out(Group *group, const Note *note) noexcept nogil:
    cdef int i
    if note.kind == NOTE_ADD:
        entry_add(group, note.entry)
    elif note.kind == NOTE_REMOVE:
        entry_remove(group, note.entry)
    elif note.kind == NOTE_SWITCH:
        for i in range(note.on_count + note.off_count):
            switch(group, note.subjects[i], i < note.on_count)


cdef void notes_take(Group *group) noexcept nogil:
    """Carry out every change that has been sent, in the order of sending."""
    cdef Note *note = <Note *>stack_take(&group.inbox)
    cdef Note *first = NULL
    cdef Note *after
    while note != NULL:
        after = note.next
        note.next = first
        first = note
        note = after
    while first != NULL:
        after = first.next
        note_carry_out(group, first)
        stack_push(&group.spent, <void **>&first.next, first)
        first = after
