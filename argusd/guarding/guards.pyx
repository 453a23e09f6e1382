# cython: language_level=3, boundscheck=False, wraparound=False
"""Guards: marking what their paths stand for, in the group that it belongs to.

What is marked follows from how a guard can be got round:

* A file is marked itself, and its name in its directory: a file that is renamed over it, or made anew, is guarded from
  its first moment, though the path has not been looked up again yet.
* A name that is missing is guarded likewise, as long as its directory is there.
* A directory is marked with its direct children. What is mounted on a name in it has its own directory elsewhere,
  and is marked itself: in a container that is often so of /etc/hosts.

The new is marked before the old is let go. A note is sent before its mark is set: so no event of a mark is answered by
a responder that does not know of it.
"""

from libc.errno cimport ENOMEM, ENXIO
from libc.stdint cimport uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport abort, calloc, free, malloc
from libc.string cimport memcmp, memcpy, strdup, strlen

from argusd.guarding.asking cimport birth
from argusd.guarding.groups cimport (
    LOCAL,
    REMOTE,
    group_for,
)
from argusd.guarding.marks cimport mark_again, mark_drop, mark_set
from argusd.guarding.table cimport (
    ITSELF,
    NOTE_ADD,
    NOTE_END,
    NOTE_REMOVE,
    NOTE_SWITCH,
    Group,
    Note,
    entry_free,
    hash_text,
    note_push,
    note_send,
)
from argusd.guarding.vetting cimport Verdict, vet, vetting_begin
from argusd.includes.fanotify cimport STATX_MNT_ID, mount_of
from argusd.includes.linux cimport (
    AT_EMPTY_PATH,
    AT_STATX_DONT_SYNC,
    STATX_BTIME,
    STATX_INO,
    STATX_TYPE,
    S_ISDIR,
    S_ISREG,
    readlink,
    statx,
    statx_t,
)
from argusd.includes.pthread cimport load_pointer, pthread_mutex_lock, pthread_mutex_unlock


cdef Subject *subject_in(Guard *guard, int number, int *error) noexcept nogil:
    """The guard's subject in a group."""
    cdef Subject **place = &guard.subjects[number]
    pthread_mutex_lock(&guard.gate.lock)
    if group_for(guard.gate, number, error) != NULL and not error[0] and place[0] == NULL:
        place[0] = <Subject *>calloc(1, sizeof(Subject))
        if place[0] == NULL:
            error[0] = ENOMEM
        else:
            place[0].lines, place[0].number, place[0].init = guard.lines, guard.number, guard.init
            place[0].owner_allowed, place[0].audit, place[0].on = guard.owner_allowed, guard.audit, guard.on
    pthread_mutex_unlock(&guard.gate.lock)
    return place[0]


cdef void switch_in(Gate *gate, int number, Guard **guards, int on_count, int off_count) noexcept nogil:
    cdef Group *group = <Group *>gate.reporter.groups[number]
    cdef Note *note
    cdef Subject *subject
    cdef int i, at
    if group == NULL:
        return
    note = <Note *>calloc(1, sizeof(Note))
    if note != NULL:
        note.subjects = <Subject **>calloc(<size_t>(on_count + off_count), sizeof(Subject *))
    if note == NULL or note.subjects == NULL:
        abort()                     # a guard that does not begin would be a wrong answer, one that does not end too
    note.kind = NOTE_SWITCH
    for i in range(on_count + off_count):
        subject = guards[i].subjects[number]
        if subject == NULL:
            continue
        at = note.on_count + note.off_count
        note.subjects[at] = subject
        if i < on_count:
            note.on_count += 1
        else:
            note.off_count += 1
    note_push(group, note)


cdef void guards_switch(Gate *gate, Guard **guards, int on_count, int off_count) noexcept nogil:
    """In one step for each responder: the first ``on_count`` begin to guard, the others end."""
    cdef int i
    if on_count + off_count == 0:
        return
    pthread_mutex_lock(&gate.lock)
    for i in range(on_count + off_count):
        guards[i].on = i < on_count
    if not gate.closed:
        for i in range(GROUPS):
            switch_in(gate, i, guards, on_count, off_count)
    pthread_mutex_unlock(&gate.lock)


cdef int guard_end(Guard *guard) noexcept nogil:
    """Free a guard, of which no path has any entry any more. How many of its subjects the reporter will see off."""
    cdef Group *group
    cdef int i, subjects = 0
    pthread_mutex_lock(&guard.gate.lock)
    for i in range(GROUPS):
        if guard.subjects[i] == NULL:
            continue
        subjects += 1
        group = <Group *>guard.gate.reporter.groups[i]
        if not guard.gate.closed:
            note_send(group, NOTE_END, NULL, guard.subjects[i])
        elif guard.gate.ended:
            free(guard.subjects[i])
    pthread_mutex_unlock(&guard.gate.lock)
    free(guard)
    return subjects

# ---- paths


cdef bint place_of(int fd, Entry *entry) noexcept nogil:
    """Where it is, in the words in which the kernel will tell of what is opened there."""
    cdef char link[48]
    cdef char text[4096]
    cdef ssize_t size
    snprintf(link, sizeof(link), b"/proc/thread-self/fd/%d", fd)
    size = readlink(link, text, sizeof(text))
    if size <= 0 or size >= <ssize_t>sizeof(text):
        size = 0
    entry.place = <char *>malloc(<size_t>size + 1)
    if entry.place == NULL:
        return False
    memcpy(entry.place, text, <size_t>size)
    entry.place[size] = 0
    entry.place_size = <size_t>size
    entry.place_hash = hash_text(text, <size_t>size)
    return True


cdef char *joined(const char *path, const char *child) noexcept nogil:
    """A path, and a name below it unless that is NULL; NULL when memory ran out."""
    cdef size_t size = strlen(path), at = 0 if size == 1 else size      # "/" ends in a slash itself
    cdef char *text
    if child == NULL:
        return strdup(path)
    text = <char *>malloc(at + strlen(child) + 2)
    if text != NULL:
        memcpy(text, path, at)
        text[at] = c'/'
        memcpy(text + at + 1, child, strlen(child) + 1)
    return text


cdef bint entry_fill(Entry *entry, int fd) noexcept nogil:
    """Which file it is, and where."""
    cdef statx_t status
    if statx(fd, b"", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_INO | STATX_BTIME | STATX_MNT_ID, &status) != 0:
        return False
    entry.device = <uint64_t>status.stx_dev_major << 32 | status.stx_dev_minor
    entry.inode = status.stx_ino
    entry.mount = mount_of(&status) if status.stx_mask & STATX_MNT_ID else 0
    entry.born = 0 if entry.layered else birth(&status)     # a file is born again when overlayfs copies it up
    return place_of(fd, entry)


cdef bint is_file(const Entry *entry, int fd) noexcept nogil:
    """Is that what is behind a descriptor?"""
    cdef statx_t status
    return (statx(fd, b"", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_INO, &status) == 0
            and status.stx_ino == entry.inode
            and (<uint64_t>status.stx_dev_major << 32 | status.stx_dev_minor) == entry.device)


cdef bint same(const Entry *a, const Entry *b) noexcept nogil:
    return (a.kind == b.kind and a.inode == b.inode and a.device == b.device and a.born == b.born
            and a.mount == b.mount
            and a.group == b.group and a.place_size == b.place_size and a.name_size == b.name_size
            and (a.place_size == 0 or memcmp(a.place, b.place, a.place_size) == 0)
            and (a.name_size == 0 or memcmp(a.name, b.name, a.name_size) == 0))


cdef Entry *entry_new(Guarded *guarded, int kind, const char *path, const char *child,
                      const char *name) noexcept nogil:
    cdef Entry *entry = <Entry *>calloc(1, sizeof(Entry))
    if entry == NULL:
        return NULL
    entry.kind, entry.deny, entry.bits = kind, guarded.deny, guarded.guard.bits
    entry.path = joined(path, child)
    entry.name = strdup(name) if name != NULL else NULL
    if entry.path == NULL or (name != NULL and entry.name == NULL):
        entry_free(entry)
        return NULL
    entry.path_size = strlen(entry.path)
    entry.name_size = strlen(name) if name != NULL else 0
    return entry


cdef Entry *take_known(Guarded *guarded, const Entry *wanted) noexcept nogil:
    """Take the entry that is like another one out of those that there were; NULL when there was none."""
    cdef Entry **link = &guarded.entries
    cdef Entry *entry
    while link[0] != NULL and not same(link[0], wanted):
        link = &link[0].next
    entry = link[0]
    if entry != NULL:
        link[0] = entry.next
    return entry


cdef void keep(Guarded *guarded, Entry *entry) noexcept nogil:
    entry.next = guarded.found
    guarded.found = entry


cdef void guarded_look(Guarded *guarded, int root_fd, const char *mounts, size_t size, bint above) noexcept nogil:
    """A look-up begins, in the container whose root and whose mounts that are; these are read until it ends."""
    guarded.vetting.init = guarded.guard.init
    vetting_begin(&guarded.vetting, root_fd, mounts, size, above)


cdef bint makes_events(int fd) noexcept nogil:
    """Of anything but a file or a directory the kernel asks nobody."""
    cdef statx_t status
    return (statx(fd, b"", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE, &status) == 0
            and (S_ISREG(status.stx_mode) or S_ISDIR(status.stx_mode)))


cdef int admit(Guarded *guarded, Entry *entry, int fd) noexcept nogil:
    """See whether it may be guarded, and find the subject that is to; 0 or an errno, with guarded.guard.step."""
    cdef Guard *guard = guarded.guard
    cdef Verdict verdict
    cdef int error
    guard.step = STEP_MARK
    error = vet(&guarded.vetting, fd, entry.path, &verdict)
    if error:
        return error
    guard.step = STEP_KIND
    if not makes_events(fd):
        return ENXIO
    guard.step = STEP_INIT
    entry.layered = verdict.layered
    entry.group = REMOTE if verdict.remote else LOCAL
    entry.subject = subject_in(guard, entry.group, &error)
    return error


cdef int guarded_add(Guarded *guarded, int kind, int fd, const char *path, const char *child,
                     const char *name) noexcept nogil:
    """Guard a thing that a path is found to stand for: what is behind an O_PATH descriptor, or a ``name`` in there.

    It is told of as ``path``, or as ``child`` below it. 0 or an errno, with guarded.guard.step: EXDEV when it is the
    node's, not the container's, which is no failure.
    """
    cdef Guard *guard = guarded.guard
    cdef Entry *entry = entry_new(guarded, kind, path, child, name)
    cdef Entry *known
    cdef Group *group
    cdef int error
    if entry == NULL:
        guard.step = STEP_MARK
        return ENOMEM
    error = admit(guarded, entry, fd)
    if error:
        entry_free(entry)
        return error
    guard.step = STEP_MARK
    group = <Group *>load_pointer(&guard.gate.reporter.groups[entry.group])
    if not entry_fill(entry, fd):
        entry_free(entry)
        return ENOMEM
    known = take_known(guarded, entry)
    if known != NULL:
        entry_free(entry)
        keep(guarded, known)
        return mark_again(group, fd, known.bits, kind != ITSELF)
    if not note_send(group, NOTE_ADD, entry, NULL):
        entry_free(entry)
        return ENOMEM
    error = mark_set(group, fd, entry.device, entry.inode, entry.bits, kind != ITSELF)
    if error:
        note_send(group, NOTE_REMOVE, entry, NULL)
    else:
        keep(guarded, entry)
    return error


cdef void drop(Gate *gate, Entry *entry) noexcept nogil:
    """Let go of what a path does not stand for any more."""
    cdef Group *group
    cdef Entry *after
    while entry != NULL:
        after = entry.next
        group = <Group *>load_pointer(&gate.reporter.groups[entry.group])
        mark_drop(group, -1, entry.device, entry.inode, entry.bits, entry.kind != ITSELF)
        pthread_mutex_lock(&gate.lock)
        if not gate.closed:
            note_send(group, NOTE_REMOVE, entry, NULL)
        elif gate.ended:
            entry_free(entry)
        pthread_mutex_unlock(&gate.lock)
        entry = after


cdef void guarded_settle(Guarded *guarded, bint complete) noexcept nogil:
    """A look-up is over: let go of what the path stands for no more; nothing, if it could not be completed."""
    cdef Entry *old = guarded.entries if complete else NULL
    cdef Entry **end = &guarded.found
    if not complete:
        while end[0] != NULL:
            end = &end[0].next
        end[0] = guarded.entries
    guarded.entries = guarded.found
    guarded.found = NULL
    drop(guarded.guard.gate, old)


cdef void guarded_end(Guarded *guarded) noexcept nogil:
    """Let go of all that a path stands for."""
    drop(guarded.guard.gate, guarded.entries)
    guarded.entries = NULL
