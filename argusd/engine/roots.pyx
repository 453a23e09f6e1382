# cython: language_level=3, boundscheck=False, wraparound=False
"""Opening the root of a container, also when its process 1 has left it.

Facts about roots that shape this file:

* Any process may change its own root with chroot(2), if only in a user namespace of its own. /proc/PID/root is the new
  one from then on, and its mountinfo lists what is mounted below that.
* A mount number, a device and an inode tell which directory a root is: a mount number is of one namespace and is in use
  once on the node. So nothing of the container needs to be kept open.
* From a directory that is open ``..`` leads up to the root of its mount namespace, unless that of the calling process
  lies on the way. Ours is elsewhere. So the old root is found from the new one where that lies below it, as it does
  unless the process kept a descriptor of elsewhere. Else another process of the container may still have it.
* A start script may call chroot(2) and then execute what the container is for. That is told from a program that changes
  its root while it runs by the random bytes that execve(2) leaves in /proc/PID/auxv, and by the age of the process:
  nobody else is to take watches and guards with him by executing something.
"""

from libc.errno cimport ESTALE
from libc.stdint cimport uint64_t
from libc.stdlib cimport atoi, strtoull
from posix.time cimport clock_gettime, timespec

from argusd.engine.core cimport NOTICE_ROOT, core_lock, core_unlock
from argusd.engine.opening cimport place_open, process_open
from argusd.engine.work cimport notice_push
from argusd.guarding.table cimport hash_text
from argusd.guarding.vetting cimport mount_number
from argusd.includes.linux cimport (
    AT_EMPTY_PATH,
    AT_STATX_DONT_SYNC,
    O_CLOEXEC,
    O_DIRECTORY,
    O_PATH,
    O_RDONLY,
    STATX_INO,
    SYS_getdents64,
    close,
    dirent64,
    memrchr,
    open,
    openat,
    read,
    statx,
    statx_t,
    syscall,
)


cdef enum:
    CLOCK_BOOTTIME = 7
    STEPS_MAX = 256                 # directories above a root that are looked at
    STARTING_S = 10                 # age up to which process 1 may still execute what the container is for
    TICKS = 100                     # USER_HZ, in which /proc tells times
    START_FIELD = 22                # of proc_pid_stat(5)
    LISTING = 16384


cdef struct Which:
    uint64_t mount
    uint64_t device
    uint64_t inode


cdef bint which(int fd, Which *found) noexcept nogil:
    """Tell which directory that is, without asking its file system."""
    cdef statx_t status
    if statx(fd, b"", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_INO, &status) != 0:
        return False
    found.mount = mount_number(fd)
    found.device = <uint64_t>status.stx_dev_major << 32 | status.stx_dev_minor
    found.inode = status.stx_ino
    return True


cdef bint is_root(const Place *place, int fd) noexcept nogil:
    """True if that directory is the root that was noted."""
    cdef Which found
    return (which(fd, &found) and found.mount == place.root_mount and found.device == place.root_device
            and found.inode == place.root_inode)


cdef uint64_t program_of(int pid) noexcept nogil:
    """A number that changes with each execve(2), 0 when it cannot be told."""
    cdef char text[2048]
    cdef ssize_t size
    cdef int fd = process_open(pid, b"auxv", O_RDONLY)
    if fd < 0:
        return 0
    size = read(fd, text, sizeof(text))
    close(fd)
    return hash_text(text, <size_t>size) if size > 0 else 0


cdef bint is_starting(int pid) noexcept nogil:
    """True if the process was born a short time ago."""
    cdef char text[1024]
    cdef const char *at
    cdef timespec now
    cdef ssize_t size
    cdef int field = 2, fd = process_open(pid, b"stat", O_RDONLY)
    if fd < 0:
        return False
    size = read(fd, text, sizeof(text) - 1)
    close(fd)
    if size <= 0:
        return False
    text[size] = 0
    at = <const char *>memrchr(text, c')', <size_t>size)
    while at != NULL and at[0] and field < START_FIELD:
        at += 1
        if at[0] == c' ':
            field += 1
    clock_gettime(CLOCK_BOOTTIME, &now)
    return at != NULL and now.tv_sec - <long>(strtoull(at, NULL, 10) // TICKS) <= STARTING_S


cdef bint note(Core *core, Place *place, int fd, bint again) noexcept nogil:
    """Take a directory for the container's root: the first one, or ``again`` that of what was executed since."""
    cdef Which found
    cdef uint64_t program = program_of(place.pid)
    cdef bint taken
    if not which(fd, &found):
        return False
    core_lock(core)
    taken = again or not place.root_known
    if taken:
        place.root_mount, place.root_device, place.root_inode = found.mount, found.device, found.inode
        place.root_program, place.root_known, place.root_left = program, True, False
    core_unlock(core)
    return taken


cdef bint has_executed(const Place *place) noexcept nogil:
    """True if process 1 is still starting, and runs another program than when its root was noted."""
    cdef uint64_t program = program_of(place.pid)
    return program != 0 and place.root_program != 0 and program != place.root_program and is_starting(place.pid)


cdef int from_below(const Place *place, int fd) noexcept nogil:
    """Look for the root above a directory; its descriptor, or -1."""
    cdef Which here, before
    cdef int at = openat(fd, b"..", O_PATH | O_DIRECTORY | O_CLOEXEC), further, _step
    before.mount = before.inode = before.device = 0
    for _step in range(STEPS_MAX):
        if at < 0 or is_root(place, at):
            return at
        if not which(at, &here) or (here.inode == before.inode and here.mount == before.mount
                                    and here.device == before.device):
            break                   # the root of the namespace is its own parent
        before = here
        further = openat(at, b"..", O_PATH | O_DIRECTORY | O_CLOEXEC)
        close(at)
        at = further
    if at >= 0:
        close(at)
    return -1


cdef int of_process(const Place *place, int pid) noexcept nogil:
    """The root of a process if it is the one that was noted, else -1."""
    cdef int fd = process_open(pid, b"root", O_PATH | O_DIRECTORY)
    if fd >= 0 and is_root(place, fd):
        return fd
    if fd >= 0:
        close(fd)
    return -1


cdef int of_another(Place *place) noexcept nogil:
    """Look for any process that has the root; a descriptor of that, or -1."""
    cdef char entries[LISTING]
    cdef const dirent64 *entry
    cdef long at, size = 1
    cdef int fd = of_process(place, place.root_by) if place.root_by else -1, proc
    if fd >= 0:
        return fd
    proc = open(b"/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    while fd < 0 and proc >= 0 and size > 0:
        size = syscall(SYS_getdents64, proc, entries, sizeof(entries))
        at = 0
        while fd < 0 and at < size:
            entry = <const dirent64 *>(entries + at)
            at += entry.d_reclen
            if c'0' < entry.d_name[0] <= c'9':
                fd = of_process(place, atoi(entry.d_name))
                if fd >= 0:
                    place.root_by = atoi(entry.d_name)
    if proc >= 0:
        close(proc)
    return fd


cdef int root_open(Core *core, Place *place) noexcept nogil:
    """The root that the container had when it was first entered, or a negative errno.

    ESRCH when its process has ended, ESTALE when the root cannot be found any more.
    """
    cdef int fd = place_open(place), found
    if fd < 0 or (not place.root_known and note(core, place, fd, False)) or is_root(place, fd):
        return fd
    if has_executed(place) and note(core, place, fd, True):
        return fd
    found = from_below(place, fd)
    close(fd)
    if found < 0:
        found = of_another(place)
    return found if found >= 0 else -ESTALE


cdef bint root_check(Core *core, Place *place, int subscription) noexcept nogil:
    """See whether process 1 has left the root, and say so once; True if the root is a new one to be looked at."""
    cdef int fd
    cdef bint left = False, anew = False
    if not place.root_known:
        return False
    fd = place_open(place)
    if fd < 0:
        return False
    if not is_root(place, fd):
        anew = has_executed(place) and note(core, place, fd, True)
        left = not anew and not place.root_left
    close(fd)
    if left:
        core_lock(core)
        place.root_left = True
        notice_push(core, NOTICE_ROOT, subscription, 0, place.pid, 0)
        core_unlock(core)
    return anew
