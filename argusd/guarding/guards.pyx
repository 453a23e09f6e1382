# cython: language_level=3, boundscheck=False, wraparound=False
"""Guards: marking what their paths stand for, in the group that it belongs to.

What is marked follows from how a guard can be got round:

* A file is marked itself, and its name in its directory: a file that is renamed over it, or made anew, is guarded from
  its first moment, though the path has not been looked up again yet.
* A name that is missing is guarded likewise, as long as its directory is there.
* A directory is marked with its direct children. What is mounted on a name in it has its own directory elsewhere,
  and is marked itself: in a container that is often so of /etc/hosts.

The new is marked before the old is let go. The order of each change is note, mark, and in the end mark, note: so no
event of a mark is answered by a responder that does not know of it.
"""

from libc.errno cimport EIO, ENOMEM, errno
from libc.stdio cimport snprintf
from libc.stdint cimport uint64_t
from libc.stdlib cimport abort, calloc, free, malloc
from libc.string cimport memcmp, memcpy, strdup, strlen
from posix.time cimport CLOCK_REALTIME, clock_gettime, timespec
from posix.unistd cimport getpid

from argusd.guarding.marks cimport mark_again, mark_drop, mark_set, marks_free
from argusd.guarding.reporter cimport reporter_main
from argusd.guarding.responder cimport respond, responder_size
from argusd.guarding.table cimport (
    CHECKED,
    CHECKING,
    ITSELF,
    NAME,
    NOTE_ADD,
    NOTE_END,
    NOTE_REMOVE,
    NOTE_SWITCH,
    RING,
    UNCHECKED,
    Note,
    entry_free,
    hash_text,
    note_push,
    note_send,
)
from argusd.includes.fanotify cimport (
    FAN_CLASS_CONTENT,
    FAN_CLOEXEC,
    FAN_ENABLE_AUDIT,
    FAN_NONBLOCK,
    FAN_OPEN_PERM,
    FAN_UNLIMITED_MARKS,
    FAN_UNLIMITED_QUEUE,
    STATX_MNT_ID,
    fanotify_init,
    fstatfs,
    mount_of,
    statfs_t,
)
from argusd.includes.linux cimport (
    AT_EMPTY_PATH,
    EFD_CLOEXEC,
    EFD_NONBLOCK,
    F_DUPFD_CLOEXEC,
    MAP_ANONYMOUS,
    MAP_FAILED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    O_CLOEXEC,
    O_DIRECTORY,
    O_LARGEFILE,
    O_NOATIME,
    O_NOCTTY,
    O_NONBLOCK,
    O_PATH,
    O_RDONLY,
    PROT_READ,
    PROT_WRITE,
    STATX_INO,
    STATX_TYPE,
    S_ISDIR,
    S_ISREG,
    close,
    eventfd,
    fcntl,
    mmap,
    munmap,
    open,
    readlinkat,
    statx,
    statx_t,
    write,
)
from argusd.includes.pthread cimport (
    load_int,
    load_pointer,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    pthread_timedjoin_np,
    store_int,
    store_pointer,
)
from argusd.threads cimport thread_begin


cdef enum:
    GROUP_FD = 512                  # descriptors of groups come behind all others, see group_make
    BTRFS = 0x9123683E
    OVERLAYFS = 0x794C7630
    LOCAL = 0                       # numbers of groups
    REMOTE = 1


# File systems that answer for themselves; of every other one a server may keep an open waiting.
cdef unsigned long *LOCAL_TYPES = [
    BTRFS,
    OVERLAYFS,
    0xEF53,                         # ext2, ext3, ext4
    0x58465342,                     # xfs
    0x01021994,                     # tmpfs
    0x858458F6,                     # ramfs
    0xF2F52010,                     # f2fs
    0x73717368,                     # squashfs
    0xE0F5E1E2,                     # erofs
    0x2FC12FC1,                     # zfs
    0x4D44,                         # vfat
    0x9660,                         # iso9660
    0x1CD1,                         # devpts
    0x62656572,                     # sysfs
    0x27E0EB,                       # cgroup
    0x63677270,                     # cgroup2
    0x958458F6,                     # hugetlbfs
    0x19800202,                     # mqueue
    0,
]


cdef unsigned long file_system(int fd) noexcept nogil:
    """Its type, 0 when it does not tell."""
    cdef statfs_t status
    return <unsigned long>status.f_type if fstatfs(fd, &status) == 0 else 0


cdef bint is_remote(int fd) noexcept nogil:
    cdef unsigned long kind = file_system(fd)
    cdef int i = 0
    while LOCAL_TYPES[i] and LOCAL_TYPES[i] != kind:
        i += 1
    return LOCAL_TYPES[i] == 0


cdef bint is_layered(int fd) noexcept nogil:
    """overlayfs has files of several file systems, btrfs subvolumes."""
    cdef unsigned long kind = file_system(fd)
    return kind == OVERLAYFS or kind == BTRFS

# ---- groups


cdef void group_free(Group *group) noexcept nogil:
    if group.fd >= 0 and not load_int(&group.broken):
        close(group.fd)
    if group.wake_fd >= 0:
        close(group.wake_fd)
    if group.links_fd >= 0:
        close(group.links_fd)
    if group.proc_fd >= 0:
        close(group.proc_fd)
    if group.ring != NULL:
        munmap(group.ring, RING)
    free(group.responder)
    pthread_mutex_destroy(&group.lock)
    free(group)


cdef int group_fd_last(int fd) noexcept nogil:
    """Give a group a number behind all others; -1 when there is none.

    When a process dies, its descriptors are released beginning with the last. While a process waits for an answer of
    the group, the end of an inotify instance that watches the file waits for it, too, when what is marked is the
    directory. So the group has to end first: killed with processes waiting, a holder of both was stuck for ever 2 of 2
    times when the group had the lower number, and never with the higher one.
    """
    cdef int last = -1, least = GROUP_FD
    while last < 0 and least > 0:
        last = fcntl(fd, F_DUPFD_CLOEXEC, least)
        least //= 2                 # there may be no such high numbers
    close(fd)
    return last


cdef int group_open(Group *group) noexcept nogil:
    """The kernel's part of a group; 0 or an errno.

    Whether an answer is audited is said with each answer. So one group will do, audit or not, and has to: of two in one
    process each may wait for the other's end, and then neither the process nor those that wait for it ever end.
    """
    cdef unsigned int flags = FAN_CLASS_CONTENT | FAN_CLOEXEC | FAN_NONBLOCK | FAN_UNLIMITED_QUEUE | FAN_UNLIMITED_MARKS
    cdef int event_flags = O_RDONLY | O_LARGEFILE | O_CLOEXEC | O_NONBLOCK | O_NOATIME
    group.fd = fanotify_init(flags | FAN_ENABLE_AUDIT, <unsigned int>event_flags)
    if group.fd < 0:
        group.no_audit = errno      # EPERM: no CAP_AUDIT_WRITE; EINVAL: a kernel without audit
        group.fd = fanotify_init(flags, <unsigned int>event_flags)
    if group.fd >= 0:
        group.fd = group_fd_last(group.fd)
    if group.fd < 0:
        return errno
    group.links_fd = open(b"/proc/self/fd", O_PATH | O_DIRECTORY | O_CLOEXEC)
    group.proc_fd = open(b"/proc", O_PATH | O_DIRECTORY | O_CLOEXEC)
    group.wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
    return errno if group.links_fd < 0 or group.proc_fd < 0 or group.wake_fd < 0 else 0


cdef int group_make(Gate *gate, int number) noexcept nogil:
    """0 or an errno."""
    cdef Group *group = <Group *>calloc(1, sizeof(Group))
    cdef int error
    if group == NULL:
        return ENOMEM
    pthread_mutex_init(&group.lock, NULL)
    group.fd = group.links_fd = group.proc_fd = group.wake_fd = -1
    group.remote = number == REMOTE
    group.self = getpid()
    group.reporter_waits, group.reporter_fd = &gate.reporter.waits, gate.reporter.fd
    group.responder = calloc(1, responder_size())
    group.ring = <char *>mmap(NULL, RING, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if <void *>group.ring == MAP_FAILED:
        group.ring = NULL
    error = group_open(group)
    if not error and (group.responder == NULL or group.ring == NULL):
        error = ENOMEM
    if not error:
        error = thread_begin(&group.thread, respond, group, b"responder")
    if error:
        group_free(group)
        return error
    store_pointer(&gate.reporter.groups[number], group)
    return 0


cdef Group *group_for(Gate *gate, int number, int *error) noexcept nogil:
    """The group of that number, made when it is first needed. With the gate's lock held."""
    if gate.closed:
        error[0] = EIO
    elif gate.reporter.groups[number] == NULL:
        error[0] = group_make(gate, number)
    return <Group *>gate.reporter.groups[number]


cdef int gate_open(Gate *gate, bint audit, int *step) noexcept nogil:
    """Make sure that there can be guards; 0 or an errno."""
    cdef int error = 0
    cdef Group *group
    step[0] = STEP_INIT
    pthread_mutex_lock(&gate.lock)
    group = group_for(gate, LOCAL, &error)
    if not error and audit:
        step[0], error = STEP_AUDIT, group.no_audit
    pthread_mutex_unlock(&gate.lock)
    return error


cdef int gate_init(Gate *gate) noexcept nogil:
    """0 or an errno; ``gate.reporter.sinks`` are set by the caller."""
    cdef int error
    pthread_mutex_init(&gate.lock, NULL)
    gate.reporter.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
    if gate.reporter.fd < 0:
        error = errno
    else:
        error = thread_begin(&gate.reporter_thread, reporter_main, &gate.reporter, b"reporter")
    gate.closed = error != 0
    return error


cdef void gate_close(Gate *gate, int timeout_ms) noexcept nogil:
    """Let go all that wait, end the threads, write the last lines. The memory stays until ``gate_free``."""
    cdef unsigned long long one = 1
    cdef timespec until
    cdef Group *group
    cdef bint ended = True
    cdef int i
    pthread_mutex_lock(&gate.lock)
    gate.closed = True
    pthread_mutex_unlock(&gate.lock)
    clock_gettime(CLOCK_REALTIME, &until)
    until.tv_sec += timeout_ms // 1000 + 1
    for i in range(GROUPS):
        group = <Group *>gate.reporter.groups[i]
        if group == NULL:
            continue
        store_int(&group.stopping, 1)
        write(group.wake_fd, &one, sizeof(one))
        ended = pthread_timedjoin_np(group.thread, NULL, &until) == 0 and ended
        if not load_int(&group.broken):
            close(group.fd)
        group.fd = -1
    store_int(&gate.reporter.stopping, 1)
    write(gate.reporter.fd, &one, sizeof(one))
    ended = pthread_timedjoin_np(gate.reporter_thread, NULL, &until) == 0 and ended
    pthread_mutex_lock(&gate.lock)
    gate.ended = ended
    pthread_mutex_unlock(&gate.lock)


cdef void gate_free(Gate *gate) noexcept nogil:
    """Free what is left, unless a thread that hangs in a file system may still use it."""
    cdef Group *group
    cdef int i
    if not gate.ended:
        return
    close(gate.reporter.fd)
    for i in range(GROUPS):
        group = <Group *>gate.reporter.groups[i]
        if group != NULL:
            marks_free(group)
            group_free(group)
    pthread_mutex_destroy(&gate.lock)

# ---- subjects


cdef Subject *subject_in(Guard *guard, int number, int *error) noexcept nogil:
    """The guard's subject in a group."""
    cdef Subject **place = &guard.subjects[number]
    pthread_mutex_lock(&guard.gate.lock)
    if group_for(guard.gate, number, error) != NULL and not error[0] and place[0] == NULL:
        place[0] = <Subject *>calloc(1, sizeof(Subject))
        if place[0] == NULL:
            error[0] = ENOMEM
        else:
            place[0].lines, place[0].number, place[0].owner = guard.lines, guard.number, guard.owner
            place[0].audit, place[0].on = guard.audit, guard.on
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


cdef bint place_of(Group *group, int fd, Entry *entry) noexcept nogil:
    """Where it is, in the words in which the kernel will tell of what is opened there."""
    cdef char link[16]
    cdef char text[4096]
    cdef ssize_t size
    snprintf(link, sizeof(link), b"%d", fd)
    size = readlinkat(group.links_fd, link, text, sizeof(text))
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


cdef bint entry_fill(Entry *entry, Group *group, int fd) noexcept nogil:
    """Which file it is, and where."""
    cdef statx_t status
    if statx(fd, b"", AT_EMPTY_PATH, STATX_INO | STATX_TYPE | STATX_MNT_ID, &status) != 0:
        return False
    entry.device = <uint64_t>status.stx_dev_major << 32 | status.stx_dev_minor
    entry.inode = status.stx_ino
    entry.mount = mount_of(&status) if status.stx_mask & STATX_MNT_ID else 0
    entry.layered = is_layered(fd)
    return place_of(group, fd, entry)


cdef bint is_file(const Entry *entry, int fd) noexcept nogil:
    """Is that what is behind a descriptor?"""
    cdef statx_t status
    return (statx(fd, b"", AT_EMPTY_PATH, STATX_INO, &status) == 0 and status.stx_ino == entry.inode
            and (<uint64_t>status.stx_dev_major << 32 | status.stx_dev_minor) == entry.device)


cdef bint same(const Entry *a, const Entry *b) noexcept nogil:
    return (a.kind == b.kind and a.inode == b.inode and a.device == b.device and a.mount == b.mount
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


cdef int guarded_add(Guarded *guarded, int kind, int fd, const char *path, const char *child,
                     const char *name) noexcept nogil:
    """Guard a thing that a path is found to stand for: what is behind an O_PATH descriptor, or a ``name`` in there.

    It is told of as ``path``, or as ``child`` below it. 0 or an errno, with guarded.guard.step.
    """
    cdef Guard *guard = guarded.guard
    cdef Entry *entry
    cdef Entry *known
    cdef Group *group
    cdef Subject *subject
    cdef int error = 0, number = REMOTE if is_remote(fd) else LOCAL
    guard.step = STEP_INIT
    subject = subject_in(guard, number, &error)
    if error:
        return error
    guard.step = STEP_MARK
    group = <Group *>load_pointer(&guard.gate.reporter.groups[number])
    entry = entry_new(guarded, kind, path, child, name)
    if entry == NULL:
        return ENOMEM
    entry.subject, entry.group = subject, number
    if not entry_fill(entry, group, fd):
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


cdef Entry *guarded_settle(Guarded *guarded, bint complete) noexcept nogil:
    """A look-up is over: what the path stands for no more, to be dropped.

    When something could not be guarded, what was guarded before stays guarded.
    """
    cdef Entry *old = guarded.entries if complete else NULL
    cdef Entry **end = &guarded.found
    if not complete:
        while end[0] != NULL:
            end = &end[0].next
        end[0] = guarded.entries
    guarded.entries = guarded.found
    guarded.found = NULL
    return old


cdef void guarded_drop(Guarded *guarded, Entry *entry, int fd) noexcept nogil:
    """Let go of an entry, which is in no list any more; ``fd`` leads to the file, or is -1."""
    cdef Gate *gate = guarded.guard.gate
    cdef Group *group = <Group *>load_pointer(&gate.reporter.groups[entry.group])
    mark_drop(group, fd, entry.device, entry.inode, entry.bits, entry.kind != ITSELF)
    pthread_mutex_lock(&gate.lock)
    if not gate.closed:
        note_send(group, NOTE_REMOVE, entry, NULL)
    elif gate.ended:
        entry_free(entry)
    pthread_mutex_unlock(&gate.lock)


cdef int guarded_check(Guarded *guarded, int fd) noexcept nogil:
    """Open what is guarded, and see that the responder is asked; 0 or an errno, EIO when it was not.

    That open is refused: no file system is asked, nothing is read, nobody else hears of it.
    """
    cdef Guard *guard = guarded.guard
    cdef Entry *entry = guarded.entries
    cdef Group *group
    cdef char link[40]
    cdef int opened, error
    cdef bint also_open = not guard.bits & FAN_OPEN_PERM
    while entry != NULL and (entry.kind == NAME or not is_file(entry, fd)):
        entry = entry.next
    if entry == NULL or not can_be_opened(fd):
        return 0
    group = <Group *>load_pointer(&guard.gate.reporter.groups[entry.group])
    if also_open:
        error = mark_set(group, fd, entry.device, entry.inode, <uint32_t>FAN_OPEN_PERM, False)
        if error:
            return error
    guard.step = STEP_CHECK
    store_int(&entry.check, CHECKING)
    snprintf(link, sizeof(link), b"/proc/self/fd/%d", fd)
    opened = open(link, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC)
    error = errno
    if opened >= 0:
        close(opened)
        error = EIO
    if load_int(&entry.check) == CHECKED:
        error = 0
    store_int(&entry.check, UNCHECKED)
    if also_open:
        mark_drop(group, fd, entry.device, entry.inode, <uint32_t>FAN_OPEN_PERM, False)
    return error


cdef bint can_be_opened(int fd) noexcept nogil:
    """Only files and directories are opened to try a guard: a device may do anything."""
    cdef statx_t status
    if statx(fd, b"", AT_EMPTY_PATH, STATX_TYPE, &status) != 0:
        return False
    return S_ISREG(status.stx_mode) or S_ISDIR(status.stx_mode)
