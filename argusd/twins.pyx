# cython: language_level=3, boundscheck=False, wraparound=False
"""Processes that share the daemon's memory, but neither its descriptors nor its fate.

A file system can keep whoever asks it waiting for ever, and a thread that waits for a FUSE server cannot be killed:
its process does not end, and none of the descriptors that it shares with other threads is closed. So whoever asks a
file system of a container does that in a *twin*: a process made by clone(2) with CLONE_VM alone. A twin that hangs
keeps itself, the few descriptors that it was given, and nothing else.

Facts that shape this file:

* A twin uses the stack of its own, and everything else of the thread that made it: errno, the allocator's cache,
  whatever else is local to a thread. That thread therefore does nothing while its twin runs but wait in a system call.
  Either of the two runs at any time, never both.
* What needs the daemon's own descriptors is done by that thread, while the twin waits for its answer (``at_home``). A
  descriptor is handed over with the question, and another one with the answer.
* A mutex or a condition variable of pthreads(7) works across the two: a futex belongs to memory, not to a process.
* PR_SET_PDEATHSIG kills the twin when the thread that made it is gone, which it is when the daemon ends.
* clone(2) without flags that make namespaces is allowed by every seccomp profile of container runtimes.
* A process that waits in vfork(2), or with CLONE_VFORK, counts as load. One that waits in recvmsg(2) does not.
"""

from libc.errno cimport EAGAIN, EINTR, ENOMEM, errno
from libc.stdio cimport snprintf
from libc.stdlib cimport abort
from libc.string cimport strlen

from argusd.includes.linux cimport (
    MAP_ANONYMOUS,
    MAP_FAILED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    O_CLOEXEC,
    O_RDWR,
    PROT_READ,
    PROT_WRITE,
    close,
    mmap,
    munmap,
    open,
    syscall,
    write,
)
from argusd.includes.pthread cimport load_int, store_int, swap_int
from argusd.includes.twin cimport (
    AF_UNIX,
    ARGUSD_TWINS,
    CLONE_VM,
    MAP_STACK,
    P_PID,
    PROT_NONE,
    PR_SET_NAME,
    PR_SET_PDEATHSIG,
    SIGKILL,
    SOCK_CLOEXEC,
    SOCK_SEQPACKET,
    SYS_close_range,
    SYS_exit_group,
    SYS_wait4,
    SYS_waitid,
    WEXITED,
    WIFSIGNALED,
    WNOWAIT,
    WTERMSIG,
    __WALL,
    clone,
    dup2,
    getpid,
    getppid,
    mprotect,
    pass_byte,
    prctl,
    socketpair,
    take_byte,
)


cdef enum:
    STACK = 1024 * 1024
    GUARD = 64 * 1024               # below the stack; a page of any size fits
    SLOTS = 1024
    LAST_FD = 1 << 20               # where close_range(2) is missing: no descriptor is expected behind it


# Process ids of all twins, 0 where there is none. Changed by whoever has the slot, read by anybody.
cdef int twins[SLOTS]
cdef int twins_end = 0              # slots from here on were never used


cdef bint is_twin(int pid) noexcept nogil:
    """True if the process is one of the daemon's twins. 0 is none: the kernel's word for one that we do not see."""
    cdef int i
    if pid <= 0:
        return False
    for i in range(load_int(&twins_end)):
        if load_int(&twins[i]) == pid:
            return True
    return False


cdef int slot_take() noexcept nogil:
    """A slot of the table, -1 when all are taken."""
    cdef int i, end
    for i in range(SLOTS):
        if load_int(&twins[i]) == 0 and swap_int(&twins[i], -1) == 0:
            end = load_int(&twins_end)
            if end <= i:
                store_int(&twins_end, i + 1)
            return i
    return -1


cdef void twin_keep(Twin *twin, int fd) noexcept nogil:
    """Let the twin have a descriptor of the daemon, under the same number."""
    cdef int at = twin.kept_count
    if fd < 0 or at == TWIN_KEPT:
        return
    while at > 0 and twin.kept[at - 1] > fd:
        twin.kept[at] = twin.kept[at - 1]
        at -= 1
    twin.kept[at] = fd
    twin.kept_count += 1


cdef void close_between(int first, int last) noexcept nogil:
    cdef int fd
    if first > last or syscall(SYS_close_range, first, last, 0) == 0:
        return
    for fd in range(first, min(last, LAST_FD) + 1):
        close(fd)


cdef void close_others(const Twin *twin) noexcept nogil:
    """Close what the twin is not to have; 0 to 2 become /dev/null, whoever reads the daemon's output."""
    cdef int at = 3, i, null = open(b"/dev/null", O_RDWR | O_CLOEXEC)
    for i in range(3):
        if null >= 0:
            dup2(null, i)
        else:
            close(i)
    for i in range(twin.kept_count):
        if twin.kept[i] >= at:
            close_between(at, twin.kept[i] - 1)
            at = twin.kept[i] + 1
    close_between(at, 0x7FFFFFFF)


cdef int twin_main(void *argument) noexcept nogil:
    """The life of the other process."""
    cdef Twin *twin = <Twin *>argument
    prctl(PR_SET_PDEATHSIG, <unsigned long>SIGKILL)
    if getppid() == twin.parent:            # else it has ended before it could kill us
        store_int(&twins[twin.slot], getpid())
        prctl(PR_SET_NAME, <unsigned long><void *>twin.name)
        close_others(twin)
        twin.body(twin, twin.argument)
    syscall(SYS_exit_group, 0)
    return 0


cdef void serve(Twin *twin) noexcept nogil:
    """Do what the twin asks for until it is gone."""
    cdef int fd, error
    while take_byte(twin.home_end, &fd) > 0:
        twin.asked(twin.asked_argument, &fd)
        error = pass_byte(twin.home_end, fd)
        if fd >= 0:
            close(fd)
        if error:
            return


cdef void wait_for(int pid, int slot) noexcept nogil:
    """Wait for the end of a twin. One that crashed may have left anything behind in the memory that it shared.

    It leaves the table before it is reaped: from then on another process may have its number.
    """
    cdef char words[80]
    cdef int status = 0
    cdef long ended = -1
    while syscall(SYS_waitid, P_PID, pid, NULL, WEXITED | WNOWAIT | __WALL, NULL) != 0 and errno == EINTR:
        pass
    store_int(&twins[slot], -1)
    while ended != pid:
        ended = syscall(SYS_wait4, pid, &status, __WALL, NULL)
        if ended < 0 and errno != EINTR:
            return
    if WIFSIGNALED(status):
        snprintf(words, sizeof(words), b"argusd: a process that looks into containers died of signal %d\n",
                 WTERMSIG(status))
        write(2, words, strlen(words))
        abort()


cdef int run_apart(Twin *twin) noexcept nogil:
    """0, or the errno that kept the twin from being made."""
    cdef int ends[2]
    cdef int error = 0, pid
    cdef char *stack = <char *>mmap(NULL, STACK, PROT_READ | PROT_WRITE,
                                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0)
    if <void *>stack == MAP_FAILED:
        return ENOMEM
    mprotect(stack, GUARD, PROT_NONE)
    if socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0:
        error = errno
        munmap(stack, STACK)
        return error
    twin.home_end, twin.twin_end = ends[0], ends[1]
    twin_keep(twin, twin.twin_end)
    twin.apart = True
    pid = clone(twin_main, stack + STACK, CLONE_VM, twin)
    error = errno if pid < 0 else 0
    close(twin.twin_end)
    if not error:
        serve(twin)
        wait_for(pid, twin.slot)
    close(twin.home_end)
    munmap(stack, STACK)
    return error


cdef int twin_run(Twin *twin) noexcept nogil:
    """Run ``twin.body`` in a twin of the calling thread and return when that has ended; 0 or an errno.

    The caller has set ``body``, ``argument`` and ``name``, all else to 0, and called ``twin_keep``. EAGAIN: there are
    as many twins, or processes, as there may be. Under ThreadSanitizer the body runs in the calling thread itself.
    """
    cdef int error
    if not ARGUSD_TWINS:
        twin.body(twin, twin.argument)
        return 0
    twin.parent = getpid()
    twin.slot = slot_take()
    if twin.slot < 0:
        return EAGAIN
    error = run_apart(twin)
    store_int(&twins[twin.slot], 0)
    return error


cdef void at_home(Twin *twin, home_body body, void *argument, int *fd) noexcept nogil:
    """Have ``body`` run in the daemon's own process, where its descriptors are.

    ``fd``, unless it is -1, is handed over: ``body`` owns it in the daemon, and the caller gets what ``body`` leaves in
    its place.
    """
    cdef int given = fd[0]
    if not twin.apart:
        body(argument, fd)
        return
    twin.asked, twin.asked_argument = body, argument
    if pass_byte(twin.twin_end, given) != 0 or take_byte(twin.twin_end, fd) <= 0:
        syscall(SYS_exit_group, 0)          # the daemon is ending
    if given >= 0:
        close(given)
