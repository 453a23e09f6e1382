# cython: language_level=3, boundscheck=False, wraparound=False
"""The responder thread: it answers permission events, and does nothing else before it has.

Facts about permission events that shape this file:

* A process that opens or reads what is guarded waits until it is answered, and can only be killed meanwhile. So there
  is no lock, no Python, no memory to be allocated and no file to be opened between the event and the answer.
* To give us a descriptor the kernel opens the file once more, in this thread. On a file system whose server does not
  answer that hangs; so files on file systems with a server have a group and a thread of their own. O_NONBLOCK keeps a
  file under lease from blocking it.
* Our own process is asked for, too, and so are its twins (twins.pyx). What they open is allowed without a look, or they
  would wait for themselves. A twin is in the list until its number may be given to another process.
* An event that cannot be given to us, for the lack of a descriptor, is denied by the kernel. The read fails, or brings
  the events before it; then nobody tells that there was another one.
* Only files and directories make permission events, pipes and devices do not; nor do reads through a descriptor that
  was opened before anything on the file system was marked. Both seen on Linux 6.18.
* Closing the group lets all through that wait. The kernel does that too when the process dies.
* What is to be said about an event is found out when all that were waiting have their answer. The descriptor holds the
  file until then.
* Most of what an open waits for is our being woken. Where events come one right after the other, the next one is looked
  for instead, without sleeping: from another processor an open takes 22 us then instead of 40. It costs us a quarter
  more of our processor's time (23 us for an answer instead of 18), since being put to sleep and woken is work, too. It
  is in vain while the process that would open next waits for our processor, or for its own: the less it pays, the less
  it is done.
* Python is busy now and then, on our processor, too. Without a better priority than it has, one open of 100 waits there
  for 1,200 us; with it, 90. Among processes of different control groups that priority is of no weight, in neither way.
"""

from libc.errno cimport EAGAIN, EBADF, EINTR, EINVAL, errno
from libc.stdint cimport int64_t, uint32_t
from libc.string cimport memcpy
from posix.time cimport CLOCK_MONOTONIC, CLOCK_REALTIME, clock_gettime, timespec

from argusd.guarding.asking cimport PARENT_KNOWN, PARENT_UNASKED, Asked, ask_file, ask_parent
from argusd.guarding.decision cimport concerns, decide, is_child_of, is_self, may_be_child_of
from argusd.guarding.marks cimport stray_found
from argusd.guarding.table cimport (
    ACCESS,
    BUCKETS,
    CHECKED,
    CHECKING,
    NAME,
    OPEN,
    RING,
    Entry,
    Group,
    Record,
    inode_bucket,
    notes_take,
)
from argusd.includes.fanotify cimport (
    FANOTIFY_METADATA_VERSION,
    FAN_ACCESS_PERM,
    FAN_ALLOW,
    FAN_AUDIT,
    FAN_DENY,
    FAN_OPEN_PERM,
    fanotify_event_metadata,
    fanotify_response,
)
from argusd.includes.linux cimport (
    F_GETFD,
    POLLIN,
    PRIO_PROCESS,
    SYS_gettid,
    close,
    fcntl,
    poll,
    pollfd,
    read,
    setpriority,
    syscall,
    write,
)
from argusd.includes.pthread cimport add_u64, load_int, load_u64, store_int, store_u64, swap_int
from argusd.twins cimport is_twin


cdef enum:
    BATCH = 32                      # events answered before any is told about
    SOON_NS = 100 * 1000            # from one event to the next, with two wake-ups between them
    LOOK_NS = 50 * 1000             # how long the next one is looked for
    PAYS = 4                        # so many have to be found before one is not
    ENOUGH_MIN = 4
    ENOUGH_MAX = 256
    TURNS = 256                     # one of so many is slept for: notes are seen then, if there is always an event


cdef struct Responder:
    Group *group
    int count
    int quick                       # how many events came soon after the one before, of late
    int enough                      # so many, and the next one is looked for
    unsigned int looked             # in a row that were found in that way
    unsigned int turn
    int64_t done_ns                 # when the last one had been answered and told of
    Asked asked[BATCH]
    fanotify_event_metadata events[BATCH]


cdef void answer(Group *group, const Asked *asked) noexcept nogil:
    cdef fanotify_response response
    response.fd = asked.fd
    response.response = FAN_DENY if asked.denied else FAN_ALLOW
    if asked.audit:
        response.response |= FAN_AUDIT
    if write(group.fd, &response, sizeof(response)) < 0 and errno == EINVAL and asked.audit:
        response.response &= ~<uint32_t>FAN_AUDIT   # a group that may not audit: the process waits for any answer
        write(group.fd, &response, sizeof(response))
    # ENOENT: the process was killed while it waited.


cdef bint is_check(Group *group, const Asked *asked) noexcept nogil:
    """Is this the open by which a new guard is checked? It is refused, so that nothing comes of it but this event."""
    cdef Entry *entry = group.by_inode[inode_bucket(asked.device, asked.inode)]
    cdef bint found = False
    while entry != NULL:
        if is_self(asked, entry) and asked.event == OPEN and load_int(&entry.check) == CHECKING:
            store_int(&entry.check, CHECKED)
            found = True
        entry = entry.next_by_inode
    return found


cdef void take_event(Responder *responder, const fanotify_event_metadata *event) noexcept nogil:
    """Answer one event."""
    cdef Group *group = responder.group
    cdef Asked *asked = &responder.asked[responder.count]
    cdef bint ours
    if event.fd < 0:
        add_u64(&group.failed, 1)                   # the kernel has denied it
        return
    asked.fd, asked.pid = event.fd, event.pid
    asked.event = OPEN if event.mask & FAN_OPEN_PERM else ACCESS
    asked.bit = <uint32_t>(event.mask & (FAN_OPEN_PERM | FAN_ACCESS_PERM))
    asked.denied = asked.audit = asked.mounted = False
    asked.parent_pid, asked.parent, asked.parent_fd, asked.stale_fd = -1, PARENT_UNASKED, -1, -1
    asked.name, asked.name_size = NULL, 0
    ours = asked.pid == group.self or is_twin(asked.pid)
    if ask_file(asked):
        if ours:
            asked.denied = is_check(group, asked)
        else:
            decide(group, asked)
    elif not ours:
        asked.device = asked.inode = 0
        asked.denied = group.denying[asked.event] > 0   # it may be any of them
    answer(group, asked)
    if ours:
        close(asked.fd)
    else:
        responder.count += 1


# ---- after the answer


cdef void record(Group *group, const Asked *asked, const Entry *entry, bint child, int64_t now_ns) noexcept nogil:
    """Put a line into the ring, or count it as dropped."""
    cdef size_t path_size = entry.path_size
    cdef bint root = entry.path_size == 1           # "/" ends in a slash itself
    cdef size_t size, at, room
    cdef Record *line
    cdef char *path
    cdef unsigned long long head = group.head
    if child:
        path_size += asked.name_size + (0 if root else 1)
    size = (sizeof(Record) + path_size + 7) & ~<size_t>7
    at = head & (RING - 1)
    room = RING - at
    if head + size + (room if room < size else 0) - load_u64(&group.tail) > RING:
        add_u64(&group.dropped, 1)
        return
    line = <Record *>(group.ring + at)
    if room < size:
        line.size, line.filler = <uint32_t>room, True
        head += room
        line = <Record *>group.ring
    line.size = <uint32_t>size
    line.filler = False
    line.denied = asked.denied
    line.access = asked.event == ACCESS
    line.directory = asked.directory
    line.path_size = <uint32_t>path_size
    line.realtime_ns = now_ns
    line.subject = entry.subject
    path = <char *>line + sizeof(Record)
    memcpy(path, entry.path, entry.path_size)
    if child:
        path += entry.path_size
        if not root:
            path[0] = c'/'
            path += 1
        memcpy(path, asked.name, asked.name_size)
    store_u64(&group.head, head + size)


cdef bint tell(Group *group, const Asked *asked, Entry *entry, bint child, int64_t now_ns) noexcept nogil:
    """Once to each subject, however many of its paths stand for the file."""
    if entry.subject.told != group.number:
        entry.subject.told = group.number
        record(group, asked, entry, child and entry.kind != NAME, now_ns)
    return True


cdef void describe(Group *group, Asked *asked, int64_t now_ns) noexcept nogil:
    """Say what was answered, to every subject that is concerned."""
    cdef Entry *entry = group.by_inode[inode_bucket(asked.device, asked.inode)]
    cdef bint told = False
    cdef int i
    group.number += 1
    while entry != NULL:
        if is_self(asked, entry) and concerns(asked, entry):
            told = tell(group, asked, entry, False, now_ns)
        entry = entry.next_by_inode
    if group.covering:
        ask_parent(group, asked)
        if asked.parent == PARENT_KNOWN:
            entry = group.by_inode[inode_bucket(asked.parent_device, asked.parent_inode)]
            while entry != NULL:
                if is_child_of(asked, entry) and concerns(asked, entry):
                    told = tell(group, asked, entry, True, now_ns)
                entry = entry.next_by_inode
    if told or not asked.denied:
        add_u64(&group.denied if asked.denied else &group.allowed, 1 if told else 0)
        if not told:
            stray_found(group, asked)
        return
    add_u64(&group.denied, 1)
    for i in range(BUCKETS):
        entry = group.by_inode[i]
        while entry != NULL:
            if may_be_child_of(asked, entry) and concerns(asked, entry) and entry.deny:
                tell(group, asked, entry, asked.name_size > 0, now_ns)
                return
            entry = entry.next_by_inode


cdef void describe_all(Responder *responder) noexcept nogil:
    cdef Group *group = responder.group
    cdef unsigned long long one = 1, before = group.head
    cdef timespec now
    cdef int i
    clock_gettime(CLOCK_REALTIME, &now)
    for i in range(responder.count):
        describe(group, &responder.asked[i], <int64_t>now.tv_sec * 1000000000 + now.tv_nsec)
        close(responder.asked[i].fd)
        if responder.asked[i].parent_fd >= 0:
            close(responder.asked[i].parent_fd)
        if responder.asked[i].stale_fd >= 0:
            close(responder.asked[i].stale_fd)
    responder.count = 0
    if group.head != before and swap_int(group.reporter_waits, 0):
        write(group.reporter_fd, &one, sizeof(one))

# ---- the thread


cdef void give_up(Group *group) noexcept nogil:
    """Close the group, or all that wait, and will come, would wait for ever."""
    store_int(&group.broken, 1)
    close(group.fd)


cdef ssize_t read_events(Responder *responder) noexcept nogil:
    return read(responder.group.fd, responder.events, sizeof(responder.events))


cdef void take_batch(Responder *responder, ssize_t size) noexcept nogil:
    """Answer what was read, and tell about it."""
    cdef Group *group = responder.group
    cdef char *at = <char *>responder.events
    cdef fanotify_event_metadata *event
    if size < 0:
        # Opening the file for us may fail with any error that its file system likes: that is not the group's.
        if errno == EBADF and fcntl(group.fd, F_GETFD) < 0:
            give_up(group)
        elif errno != EAGAIN and errno != EINTR:
            add_u64(&group.failed, 1)               # the kernel has denied it
        return
    notes_take(group)
    while size >= <ssize_t>sizeof(fanotify_event_metadata):
        event = <fanotify_event_metadata *>at
        if event.vers != FANOTIFY_METADATA_VERSION or event.event_len < sizeof(fanotify_event_metadata):
            give_up(group)
            return
        take_event(responder, event)
        at += event.event_len
        size -= event.event_len
    describe_all(responder)


cdef int64_t now_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t>now.tv_sec * 1000000000 + now.tv_nsec


cdef void look_less(Responder *responder, bint in_vain) noexcept nogil:
    """None was found in time, or others have had the processor meanwhile, who wait for it: sleep a while.

    What is often in vain is not to be tried often; nor where it keeps others from the processor, who would keep us from
    it when an answer is due.
    """
    if not in_vain or responder.looked < PAYS:
        responder.enough = min(2 * responder.enough, ENOUGH_MAX)
    responder.quick = responder.looked = 0


cdef bint look(Responder *responder) noexcept nogil:
    """Ask for events again and again, and answer them; False when none has come in time."""
    cdef ssize_t size
    cdef bint late, none = True
    while True:
        late = now_ns() - responder.done_ns > LOOK_NS
        size = read_events(responder)
        none = size < 0 and errno == EAGAIN
        if late or not none:
            break
    if late:
        look_less(responder, none)
    if none:
        return False
    responder.looked += 1
    if responder.looked == 2 * PAYS:
        responder.enough = max(responder.enough // 2, ENOUGH_MIN)
    take_batch(responder, size)
    return True


cdef void sleep(Responder *responder) noexcept nogil:
    """Wait for events, and answer them, or for notes."""
    cdef Group *group = responder.group
    cdef unsigned long long count
    cdef pollfd waiters[2]
    cdef bint soon
    waiters[0].fd, waiters[0].events = group.fd, POLLIN
    waiters[1].fd, waiters[1].events = group.wake_fd, POLLIN
    if poll(waiters, 2, -1) < 0:
        return
    if waiters[1].revents:
        read(group.wake_fd, &count, sizeof(count))
        notes_take(group)
        if swap_int(group.reporter_waits, 0):       # it frees what the notes leave behind
            count = 1
            write(group.reporter_fd, &count, sizeof(count))
    if waiters[0].revents:
        soon = now_ns() - responder.done_ns < SOON_NS
        responder.quick = min(responder.quick + 1, ENOUGH_MAX) if soon else max(responder.quick - PAYS, 0)
        take_batch(responder, read_events(responder))


cdef void *respond(void *argument) noexcept nogil:
    """The body of a responder thread; ``argument`` is its group."""
    cdef Group *group = <Group *>argument
    cdef Responder *responder = <Responder *>group.responder
    responder.group = group
    responder.enough = ENOUGH_MIN
    setpriority(PRIO_PROCESS, <unsigned int>syscall(SYS_gettid), -20)   # may fail
    while not load_int(&group.stopping) and not load_int(&group.broken):
        responder.turn += 1
        if responder.quick < responder.enough or responder.turn % TURNS == 0 or not look(responder):
            sleep(responder)
        responder.done_ns = now_ns()
    return NULL


cdef size_t responder_size() noexcept nogil:
    return sizeof(Responder)
