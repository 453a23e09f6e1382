# cython: language_level=3, boundscheck=False, wraparound=False
"""The watch engine: what Python sees of the reader, the walker and the trees.

One inotify instance serves every subscription, because a node has few (fs.inotify.max_user_instances). Who owns what:

* ``Core`` (engine/core.pxd): the trees and tables, under its lock.
* ``Reader`` (engine/events.pyx): the reader thread; the only one that reads events and makes their lines.
* ``Walk`` (engine/walk.pyx): one per thread that looks into containers, the walker and each call of ``Engine.arm``.
* ``Engine``: the threads, the descriptors, and the subscriptions' memory. Its lists of subscriptions are under Core's
  lock like the rest; ``counters``, ``encoders``, ``calls`` and ``Counter.users`` are Python's, under the GIL.
"""

import os
from typing import NamedTuple

from cpython.ref cimport Py_INCREF
from libc.errno cimport EMFILE, ENFILE, ENOMEM, ESRCH, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset, strdup
from posix.time cimport CLOCK_REALTIME, clock_gettime, timespec

from argusd._fanotify cimport Guards, guard_error
from argusd._output cimport Output
from argusd._records cimport Buffer, Encoder, buffer_add, buffer_free
from argusd.engine.anchors cimport root_end
from argusd.engine.core cimport (
    EVENT_KINDS,
    Core,
    Counter,
    NoticeEntry,
    Place,
    Root,
    Subscription,
    core_init,
    core_lock,
    core_unlock,
    monotonic_ns,
)
from argusd.engine.entering cimport DENIED_ENTER, DENIED_ROOT, WAY_OPENAT2, WAY_SETNS, openat2_missing
from argusd.engine.events cimport reader_free, reader_init, reader_main
from argusd.engine.limbo cimport limbo_busy, limbo_free_all
from argusd.engine.mounts cimport mounts_remember
from argusd.engine.places cimport place_join, place_leave
from argusd.engine.report cimport Reader
from argusd.engine.starving cimport share_read
from argusd.engine.subject cimport arm_root
from argusd.engine.walk cimport Walk, walk_free, walk_init, walk_twin
from argusd.engine.walker cimport foreman
from argusd.engine.work cimport core_free, root_armed, tell_python
from argusd.guarding.guards cimport Guard, guarded_end, guards_switch
from argusd.includes.linux cimport (
    EFD_CLOEXEC,
    EFD_NONBLOCK,
    POLLIN,
    RTLD_NOW,
    close,
    dlopen,
    eventfd,
    poll,
    pollfd,
    read,
    usleep,
    write,
)
from argusd.includes.pthread cimport (
    load_int,
    load_u64,
    pthread_cond_broadcast,
    pthread_join,
    pthread_t,
    pthread_timedjoin_np,
    store_int,
    swap_u64,
)
from argusd.threads cimport thread_begin
from argusd.twins cimport Twin, twin_run


cdef enum:
    LEAVE_US = 1000             # between two looks at whether a closing engine is still used


EVENTS = {
    "ACCESS": 0x1,
    "MODIFY": 0x2,
    "ATTRIB": 0x4,
    "CLOSE_WRITE": 0x8,
    "CLOSE_NOWRITE": 0x10,
    "OPEN": 0x20,
    "MOVED_FROM": 0x40,
    "MOVED_TO": 0x80,
    "CREATE": 0x100,
    "DELETE": 0x200,
    "DELETE_SELF": 0x400,
    "MOVE_SELF": 0x800,
}
COUNTED = (*(name.lower() for name in EVENTS), "q_overflow")

cdef tuple NOTICE_KINDS = (
    "overflow", "limit", "depth", "beyond", "mounts", "unguarded", "foreign", "share", "watched", "root"
)


class Notice(NamedTuple):
    kind: str
    subscription: int
    errno: int
    number: int
    path: str


class Armed(NamedTuple):
    errors: tuple
    directories: int
    seconds: float
    unreadable: str = ""


class DeniedError(PermissionError):
    step = ""


# One call of Engine.arm, on a native thread of its own.
cdef struct ArmTask:
    Core *core
    Subscription *subscription
    int at                      # which of its paths is being armed
    Buffer unreadable
    int denied
    int error


cdef void *arm_apart(void *argument) noexcept nogil:
    """The body of a walking thread."""
    cdef ArmTask *task = <ArmTask *>argument
    cdef Twin twin
    cdef int error
    walk_twin(&twin, task.core, arm_all, task)
    error = twin_run(&twin)
    if error:
        task.error = error
    return NULL


cdef void arm_all(Twin *twin, void *argument) noexcept nogil:
    cdef ArmTask *task = <ArmTask *>argument
    cdef Subscription *subscription = task.subscription
    cdef Walk walk
    cdef int i
    task.error = walk_init(&walk, task.core, twin)
    task.denied = walk.entrance.denied
    walk.initial = True
    if not task.error:
        mounts_remember(&walk, subscription.place)
    for i in range(subscription.root_count):
        if task.error or walk.error or subscription.cancelled:
            break
        store_int(&task.at, i)
        subscription.roots[i].error = arm_root(&walk, &subscription.roots[i])
        if subscription.roots[i].error and walk.entrance.denied:
            task.error, task.denied = subscription.roots[i].error, walk.entrance.denied
    task.error = task.error or walk.error
    task.unreadable = walk.unreadable
    memset(&walk.unreadable, 0, sizeof(Buffer))
    walk_free(&walk)


cdef bint is_held(const Subscription *subscription) noexcept nogil:
    """Is a walk under way for one of these?"""
    while subscription != NULL and not subscription.users:
        subscription = subscription.next
    return subscription != NULL


cdef void subscription_free(Subscription *subscription) noexcept nogil:
    """Free what a subscription owns alone."""
    cdef int i
    for i in range(subscription.root_count):
        free(subscription.roots[i].path)
        buffer_free(&subscription.roots[i].real)
        buffer_free(&subscription.roots[i].triggers)
        buffer_free(&subscription.roots[i].held)
        if subscription.roots[i].follow_fd >= 0:
            close(subscription.roots[i].follow_fd)
        if subscription.roots[i].next_follow_fd >= 0:
            close(subscription.roots[i].next_follow_fd)
    free(subscription.roots)
    for i in range(subscription.ignored_count):
        free(subscription.ignored[i])
    free(subscription.ignored)
    free(subscription)


cdef class Engine:
    cdef Core core
    cdef Reader reader
    cdef pthread_t reader_thread, foreman_thread
    cdef bint started, closed
    cdef int last_number
    cdef Output output              # kept: the reader writes to its sinks
    cdef dict encoders              # subscription number -> Encoder, kept for as long as the reader may use it
    cdef dict counters              # counter number -> address; under the GIL
    cdef int last_counter
    cdef Subscription *ended        # switched off, but a walk still holds them; under Core's lock
    cdef dict walks                 # subscription number -> address of the ArmTask under way; under the GIL
    cdef int calls                  # of methods that let the GIL go, under way in other threads; under the GIL
    cdef Guards guards              # whose paths are looked up here, too

    def __cinit__(self, Output output not None, str enter="auto", int sysctl_fd=-1, long queued_events=0,
                  int watch_share=0):
        cdef int error, i, way
        self.closed = True          # until everything below has worked
        self.output = output
        self.encoders = {}
        self.counters = {}
        self.walks = {}
        way = way_to_enter(enter)
        error = core_init(&self.core, sysctl_fd, queued_events)
        if error:
            raise OSError(error, f"no inotify instance: {os.strerror(error)} (see fs.inotify.max_user_instances)")
        self.core.way = way
        self.core.share_percent = watch_share
        self.core.watch_share = share_read(watch_share)
        if not reader_init(&self.reader, &self.core):
            raise MemoryError
        self.reader.stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        if self.reader.stop_fd < 0:
            raise OSError(errno, "no eventfd: " + os.strerror(errno))
        self.reader.wanted = 1
        self.reader.sink_count = output.count
        for i in range(output.count):
            self.reader.sinks[i] = output.sinks[i]
        self.closed = False

    def __dealloc__(self):
        if not self.closed:
            self.close(0.0)
        for address in (self.counters or {}).values():
            free(<Counter *><size_t>address)

    def start(self):
        if self.started or self.closed:
            raise RuntimeError("the engine was started before")
        thread_start(&self.reader_thread, reader_main, &self.reader, b"reader")
        self.started = True
        thread_start(&self.foreman_thread, foreman, &self.core, b"foreman")

    @property
    def enter(self):
        return "openat2" if self.core.way == WAY_OPENAT2 else "setns"

    @property
    def queue(self):
        return self.core.queue_length, self.core.queue_error

    def fileno(self):
        return self.core.told_fd

    def acknowledge(self):
        cdef unsigned long long count
        read(self.core.told_fd, &count, sizeof(count))
        store_int(&self.core.told, 0)

    def want_counts(self, bint wanted):
        store_int(&self.reader.wanted, wanted)
        if wanted:
            tell_python(&self.core)

    # ---- subscriptions

    def subscribe(self, Encoder encoder not None, int counter, int pid, int pidfd, paths, mask, ignore,
                  bint only_dir, bint recursive, int max_depth, bint follow_move):
        cdef Subscription *subscription
        cdef bytes text
        self.check_open()
        subscription = self.new_subscription()
        self.calls += 1
        subscription.mask = mask
        subscription.only_dir = only_dir
        subscription.recursive = recursive
        subscription.max_depth = max_depth
        subscription.follow_move = follow_move
        subscription.lines = &encoder.lines
        try:
            subscription.counter = self.use_counter(counter)
            subscription.roots = new_roots(subscription, paths)
            if recursive and ignore:
                subscription.ignored = <char **>calloc(len(ignore), sizeof(char *))
                if subscription.ignored == NULL:
                    raise MemoryError
                for text in ignore:
                    subscription.ignored[subscription.ignored_count] = strdup(text)
                    subscription.ignored_count += 1
            subscription.place = self.place(pid, pidfd)
            self.encoders[subscription.number] = encoder
            self.enlist(subscription)
            return subscription.number
        except BaseException:
            self.discard(subscription)
            raise
        finally:
            self.calls -= 1

    def guard(self, Guards guards not None, Encoder encoder not None, int pid, int pidfd, deny, allow, uint32_t mask,
              bint only_dir, bint auto_allow_owner, bint audit):
        cdef Subscription *subscription
        cdef int i
        self.check_open()
        if self.guards is not None and self.guards is not guards:
            raise ValueError("an engine looks paths up for one Guards only")
        subscription = self.new_subscription()
        self.calls += 1
        subscription.only_dir = only_dir
        try:
            subscription.roots = new_roots(subscription, [*deny, *allow])
            subscription.place = self.place(pid, pidfd)
            subscription.guard = guards.guard(subscription.number, encoder, pid, auto_allow_owner, mask, audit)
            for i in range(subscription.root_count):
                subscription.roots[i].guarded.guard = subscription.guard
                subscription.roots[i].guarded.deny = i < len(deny)
            self.guards = guards
            self.enlist(subscription)
            return subscription.number
        except BaseException:
            self.discard(subscription)
            raise
        finally:
            self.calls -= 1

    cdef Subscription *new_subscription(self) except NULL:
        """With a number of its own."""
        cdef Subscription *subscription = <Subscription *>calloc(1, sizeof(Subscription))
        if subscription == NULL:
            raise MemoryError
        self.last_number += 1
        subscription.number = self.last_number
        return subscription

    cdef void discard(self, Subscription *subscription) noexcept:
        """Free a subscription that no other thread has seen, or can see any more."""
        self.encoders.pop(subscription.number, None)
        if subscription.place != NULL:
            self.leave_place(subscription.place)
        if subscription.counter != NULL:
            self.leave_counter(subscription.counter)
        subscription_free(subscription)

    cdef void enlist(self, Subscription *subscription) noexcept:
        with nogil:
            core_lock(&self.core)
            subscription.next = self.core.subscriptions
            self.core.subscriptions = subscription
            pthread_cond_broadcast(&self.core.work)     # the walker looks at mounts from now on
            core_unlock(&self.core)

    cdef Place *place(self, int pid, int pidfd) except NULL:
        """The place of a living process, shared by all its subscriptions."""
        cdef Place *place
        cdef int error = 0
        with nogil:
            place = place_join(&self.core, pid, pidfd, &error)
        if place == NULL:
            raise OSError(error, f"pidfd {pidfd} of process {pid}: {os.strerror(error)}")
        return place

    cdef void leave_place(self, Place *place) noexcept:
        with nogil:
            place_leave(&self.core, place)

    cdef Counter *use_counter(self, int number) except NULL:
        """A counter that stays until ``leave_counter``, also when its number is given back."""
        cdef Counter *counter = <Counter *><size_t>self.counters[number]
        counter.users += 1
        return counter

    cdef void leave_counter(self, Counter *counter) noexcept:
        counter.users -= 1
        if counter.users == 0 and counter.released:
            free(counter)

    cdef Subscription *find(self, int number) noexcept nogil:
        cdef Subscription *subscription = self.core.subscriptions
        while subscription != NULL and subscription.number != number:
            subscription = subscription.next
        return subscription

    def arm(self, int number):
        self.check_open()
        self.calls += 1
        try:
            return self.arm_now(number)
        finally:
            self.calls -= 1

    cdef arm_now(self, int number):
        cdef Subscription *subscription
        cdef ArmTask task
        cdef pthread_t thread
        cdef int i
        cdef long long begin_ns = monotonic_ns()
        memset(&task, 0, sizeof(task))
        with nogil:
            core_lock(&self.core)
            subscription = self.find(number) if not self.core.stopping else NULL
            if subscription != NULL:
                subscription.users += 1
            core_unlock(&self.core)
        if subscription == NULL:
            raise KeyError(f"no subscription {number}")
        task.core, task.subscription = &self.core, subscription
        self.walks[number] = <size_t>&task
        try:
            try:
                thread_start(&thread, arm_apart, &task, b"walk")
                with nogil:
                    pthread_join(thread, NULL)
            finally:
                with nogil:
                    core_lock(&self.core)
                    for i in range(subscription.root_count):
                        root_armed(&self.core, &subscription.roots[i])
                    core_unlock(&self.core)
            return self.armed(&task, begin_ns)
        finally:
            self.walks.pop(number, None)
            buffer_free(&task.unreadable)
            with nogil:
                core_lock(&self.core)
                subscription.users -= 1
                core_unlock(&self.core)

    def walked(self, int number):
        cdef ArmTask *task
        address = self.walks.get(number)
        if address is None:
            return None
        task = <ArmTask *><size_t>address
        # Without the lock: whoever asks must not wait for anything.
        return load_u64(<unsigned long long *>&task.subscription.directories), load_int(&task.at)

    cdef armed(self, const ArmTask *task, long long begin_ns):
        """What became of a walk; its subscription is held by the caller."""
        cdef const Subscription *subscription = task.subscription
        cdef int i, error
        cdef uint64_t directories
        unreadable = os.fsdecode(task.unreadable.data[:task.unreadable.size]) if task.unreadable.size else ""
        if task.denied:
            raise denied(task)
        if task.error:
            raise OSError(task.error, os.strerror(task.error))
        for i in range(subscription.root_count):
            error = subscription.roots[i].error
            if error == ESRCH:
                raise OSError(error, os.strerror(error), self.root_path(&subscription.roots[i]))
            if subscription.roots[i].unguarded:
                raise guard_error(subscription.guard.step, subscription.roots[i].unguarded,
                                  self.root_path(&subscription.roots[i]))
        with nogil:
            core_lock(&self.core)
            directories = subscription.directories
            core_unlock(&self.core)
        return Armed(
            tuple([subscription.roots[i].error for i in range(subscription.root_count)]),
            directories,
            (monotonic_ns() - begin_ns) * 1e-9,
            unreadable,
        )

    cdef str root_path(self, const Root *root):
        """A subject path as it is now: the reader replaces that of a followed file."""
        cdef Buffer path
        memset(&path, 0, sizeof(path))
        with nogil:
            core_lock(&self.core)
            buffer_add(&path, root.path, root.path_size)
            core_unlock(&self.core)
        try:
            return os.fsdecode(path.data[:path.size]) if path.size else ""
        finally:
            buffer_free(&path)

    def switch(self, on, off):
        self.check_open()
        self.calls += 1
        try:
            return self.switch_now(on, off)
        finally:
            self.calls -= 1

    cdef bint switch_now(self, on, off) except -1:
        cdef vector on_numbers, off_numbers
        cdef Subscription *subscription
        cdef Subscription *dead
        cdef Guard **affected = NULL
        cdef int guards_on = 0, guards_off = 0
        cdef size_t i
        cdef bint held
        vector_fill(&on_numbers, on)
        vector_fill(&off_numbers, off)
        affected = <Guard **>calloc(on_numbers.size + off_numbers.size + 1, sizeof(Guard *))
        if affected == NULL:
            raise MemoryError
        with nogil:                     # the reader may wait for this lock: never for the GIL meanwhile
            core_lock(&self.core)
            for i in range(on_numbers.size):
                subscription = self.find(on_numbers.items[i])
                if subscription == NULL:
                    continue
                subscription.on = True
                if subscription.guard != NULL:
                    affected[guards_on] = subscription.guard
                    guards_on += 1
            for i in range(off_numbers.size):
                subscription = self.find(off_numbers.items[i])
                if subscription != NULL and subscription.guard != NULL:
                    affected[guards_on + guards_off] = subscription.guard
                    guards_off += 1
            if guards_on + guards_off:
                guards_switch(affected[0].gate, affected, guards_on, guards_off)
            for i in range(off_numbers.size):
                self.end(off_numbers.items[i])
            dead = self.reap()
            held = self.ended != NULL
            core_unlock(&self.core)
            free(on_numbers.items)
            free(off_numbers.items)
            free(affected)
        self.bury(dead)
        return held

    cdef void end(self, int number) noexcept nogil:
        """Take a subscription out of the reader's sight. With the lock held."""
        cdef Subscription **link = &self.core.subscriptions
        cdef Subscription *subscription
        while link[0] != NULL and link[0].number != number:
            link = &link[0].next
        subscription = link[0]
        if subscription == NULL:
            return
        link[0] = subscription.next
        subscription.on = False
        subscription.cancelled = True
        drop_trees(&self.core, subscription)
        subscription.next = self.ended
        self.ended = subscription

    cdef Subscription *reap(self) noexcept nogil:
        """The ended subscriptions that no walk holds any more, as a list. With the lock held."""
        cdef Subscription **link = &self.ended
        cdef Subscription *subscription
        cdef Subscription *dead = NULL
        while link[0] != NULL:
            subscription = link[0]
            if subscription.users:
                link = &subscription.next
                continue
            link[0] = subscription.next
            drop_trees(&self.core, subscription)        # armed by a walk that noticed its end too late
            subscription.next = dead
            dead = subscription
        return dead

    cdef void bury(self, Subscription *dead) noexcept:
        cdef Subscription *after
        cdef int i
        while dead != NULL:
            after = dead.next
            if dead.guard != NULL:
                with nogil:
                    for i in range(dead.root_count):
                        guarded_end(&dead.roots[i].guarded)
                self.guards.end(dead.guard)
            self.discard(dead)
            dead = after

    # ---- counts and notices

    def new_counter(self):
        cdef Counter *counter = <Counter *>calloc(1, sizeof(Counter))
        if counter == NULL:
            raise MemoryError
        self.last_counter += 1
        self.counters[self.last_counter] = <size_t>counter
        return self.last_counter

    def free_counter(self, int counter):
        cdef Counter *released = <Counter *><size_t>self.counters.pop(counter)
        released.released = True
        if released.users == 0:
            free(released)

    def drain_counts(self):
        cdef Counter *counter
        cdef unsigned long long count
        cdef int kind
        cdef list found = []
        for number, address in self.counters.items():
            counter = <Counter *><size_t>address
            for kind in range(EVENT_KINDS):
                if counter.counts[kind]:
                    count = swap_u64(&counter.counts[kind], 0)
                    found.append((number, kind, count))
        return found

    def notices(self):
        cdef NoticeEntry *notice
        cdef NoticeEntry *after
        cdef list found = []
        cdef unsigned long long dropped, forgotten
        self.calls += 1
        with nogil:
            core_lock(&self.core)
            notice = self.core.notices
            self.core.notices = NULL
            self.core.notice_count = 0
            dropped, self.core.notices_dropped = self.core.notices_dropped, 0
            forgotten, self.core.forgotten = self.core.forgotten, 0
            core_unlock(&self.core)
        self.calls -= 1
        while notice != NULL:
            path = os.fsdecode(notice.path) if notice.path != NULL else ""
            found.append(Notice(NOTICE_KINDS[notice.kind], notice.subscription, notice.error, notice.number, path))
            after = notice.next
            free(notice.path)
            free(notice)
            notice = after
        if dropped:
            found.append(Notice("dropped", 0, 0, dropped, ""))
        if forgotten:
            found.append(Notice("forgotten", 0, ENOMEM, forgotten, ""))
        return found

    def statistics(self):
        cdef uint32_t watches, nodes, waiting
        self.calls += 1
        with nogil:
            core_lock(&self.core)
            watches = self.core.wds_count
            nodes = self.core.node_count
            waiting = self.core.starving
            core_unlock(&self.core)
        self.calls -= 1
        return {
            "reads": self.reader.reads,
            "events": self.reader.handled,
            "lines": self.reader.reported,
            "overflows": self.reader.overflows,
            "watches": watches,
            "nodes": nodes,
            "waiting": waiting,
        }

    def settled(self):
        cdef bint busy
        cdef pollfd waiter
        waiter.fd, waiter.events = self.core.inotify_fd, POLLIN
        self.calls += 1
        with nogil:
            core_lock(&self.core)
            busy = poll(&waiter, 1, 0) > 0      # before the next line, or a batch that was just read would be missed
            busy = (busy or load_int(&self.core.reading) or self.core.working or self.core.removal_count
                    or self.core.job_count or self.core.roots.first != NULL or self.core.roots_aside.first != NULL
                    or self.core.unsettled != NULL
                    or self.core.windows.count or self.core.retry_count or self.core.looks != NULL
                    or self.core.echoes.count or self.core.swaps.first != NULL or self.core.swaps_aside.first != NULL
                    or self.core.swaps_due.first != NULL
                    or self.core.repair or self.core.fence_passed != self.core.fence_placed
                    or limbo_busy(&self.core))
            core_unlock(&self.core)
        self.calls -= 1
        return not busy

    # ---- the end

    cdef int check_open(self) except -1:
        if self.closed:
            raise RuntimeError("the engine is closed")
        return 0

    def close(self, double drain_s=1.0):
        cdef unsigned long long one = 1
        cdef timespec when
        cdef bint stuck = False
        cdef int64_t until_ns = monotonic_ns() + <int64_t>((drain_s + 1) * 1e9)
        if self.closed:
            return
        self.closed = True
        if self.started:
            with nogil:
                self.reader.drain_ms = <int>(drain_s * 1000)
                store_int(&self.core.stopping, 1)
                write(self.reader.stop_fd, &one, sizeof(one))
                core_lock(&self.core)
                pthread_cond_broadcast(&self.core.work)
                pthread_cond_broadcast(&self.core.begun)
                core_unlock(&self.core)
                clock_gettime(CLOCK_REALTIME, &when)
                when.tv_sec += <long>drain_s + 1
                stuck = pthread_timedjoin_np(self.reader_thread, NULL, &when) != 0
                stuck = pthread_timedjoin_np(self.foreman_thread, NULL, &when) != 0 or stuck
        if stuck or self.is_used(until_ns):
            Py_INCREF(self)     # a file system does not answer: what that thread uses stays until the process ends
            return
        self.free_all()

    cdef bint is_used(self, int64_t until_ns) noexcept:
        """True if a call or a walk still uses the core at that time; both are waited for until then."""
        cdef bint held
        while True:
            with nogil:
                core_lock(&self.core)
                held = is_held(self.core.subscriptions) or is_held(self.ended) or self.core.workers != NULL
                core_unlock(&self.core)
            if not held and not self.calls:
                return False
            if monotonic_ns() >= until_ns:
                return True
            with nogil:
                usleep(LEAVE_US)

    cdef void free_all(self) noexcept:
        self.bury(self.core.subscriptions)
        self.bury(self.ended)
        self.core.subscriptions = self.ended = NULL
        limbo_free_all(&self.core)
        core_free(&self.core)
        reader_free(&self.reader)


cdef denied(const ArmTask *task):
    error = DeniedError(task.error, os.strerror(task.error))
    error.step = {DENIED_ROOT: "root", DENIED_ENTER: "enter"}[task.denied]
    return error


cdef int way_to_enter(str enter) except -1:
    """Choose the way into containers, see engine/entering.pyx."""
    cdef int missing
    if enter not in ("auto", "openat2", "setns"):
        raise ValueError(f"no way into containers: {enter!r}")
    missing = openat2_missing()
    if missing in (EMFILE, ENFILE, ENOMEM):             # says nothing about openat2
        raise OSError(missing, os.strerror(missing))
    if enter == "openat2" and missing:
        raise OSError(missing, "openat2(2) is missing: the kernel is older than 5.6, or a seccomp profile forbids it")
    if enter == "openat2" or (enter == "auto" and not missing):
        return WAY_OPENAT2
    # glibc loads this library when a thread is cancelled or calls pthread_exit(3). No thread does that inside a
    # container; but once it is loaded, none could load another one.
    dlopen(b"libgcc_s.so.1", RTLD_NOW)
    return WAY_SETNS


cdef void drop_trees(Core *core, Subscription *subscription) noexcept nogil:
    cdef int i
    for i in range(subscription.root_count):
        root_end(core, &subscription.roots[i])


cdef struct vector:
    int *items
    size_t size


cdef int vector_fill(vector *numbers, source) except -1:
    cdef list items = [int(number) for number in source]
    cdef size_t i
    numbers.size = <size_t>len(items)
    numbers.items = <int *>calloc(numbers.size + 1, sizeof(int))
    if numbers.items == NULL:
        raise MemoryError
    for i in range(numbers.size):
        numbers.items[i] = items[i]
    return 0


cdef Root *new_roots(Subscription *subscription, paths) except NULL:
    cdef Root *roots = <Root *>calloc(max(1, len(paths)), sizeof(Root))
    cdef bytes text
    if roots == NULL:
        raise MemoryError
    for text in paths:
        roots[subscription.root_count].subscription = subscription
        roots[subscription.root_count].path = strdup(text)
        roots[subscription.root_count].path_size = <size_t>len(text)
        roots[subscription.root_count].arming = True
        roots[subscription.root_count].follow_fd = -1
        roots[subscription.root_count].next_follow_fd = -1
        subscription.root_count += 1
    return roots


cdef int thread_start(pthread_t *thread, void *(*body)(void *) noexcept nogil, void *argument,
                      const char *name) except -1:
    cdef int error = thread_begin(thread, body, argument, name)
    if error:
        raise OSError(error, f"cannot start the {name.decode()} thread: {os.strerror(error)}")
    return 0
