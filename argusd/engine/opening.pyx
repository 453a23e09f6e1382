# cython: language_level=3, boundscheck=False, wraparound=False
"""Opening what is inside a container, and telling whether it is still the same.

Facts about path lookup that shape this file:

* A container's files are reached through /proc/PID/root; see entering.pyx for how its paths are looked up there. One
  name that is opened from the descriptor of its directory, without following links, needs neither of the two ways.
* A process number says which process only while that process lives. So the time at which the process started is read
  after /proc/PID was opened: a walk, in a process of its own, does not have the pidfds that were opened since.
* Where there are no pidfds a descriptor of the folder /proc/PID takes their place. It stays with its process too: after
  the end nothing can be opened through it, whoever has the number by then.
* A process whose main thread has ended lives on in its other threads: its pidfd tells no end then. But its root, its
  namespaces and its mounts are told by the folders of those threads only.
* An O_PATH descriptor causes no events and opens nothing: no fifo blocks, no device is touched.
* Inode numbers are used again; together with the device and the time of birth they tell one file from another.
"""

from libc.errno cimport EAGAIN, EINVAL, ENOENT, ENOSYS, ENOTDIR, EPERM, ESRCH, EXDEV, errno
from libc.stdint cimport uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport strtoull
from libc.string cimport memset

from argusd.includes.linux cimport (
    AT_EMPTY_PATH,
    AT_SYMLINK_NOFOLLOW,
    IN_MASK_ADD,
    IN_ONLYDIR,
    O_CLOEXEC,
    O_DIRECTORY,
    O_NOFOLLOW,
    O_NONBLOCK,
    O_PATH,
    O_RDONLY,
    POLLIN,
    RESOLVE_NO_XDEV,
    STATX_BTIME,
    STATX_INO,
    SYS_getdents64,
    SYS_openat2,
    close,
    dirent64,
    fchdir,
    fstatat,
    fstatfs,
    inotify_add_watch,
    memrchr,
    open,
    open_how,
    openat,
    poll,
    pollfd,
    read,
    stat_t,
    statfs_t,
    statx,
    statx_t,
    syscall,
)
from argusd.includes.pthread cimport load_int


cdef enum:
    LOOKUPS = 32                    # tries of a lookup that a concurrent rename disturbs
    TOO_LONG = 300                  # more bytes than a file name can have
    READS_MAX = 16                  # of a process' list of threads, which may grow as fast as it is read
    TASKS = 2048                    # bytes of it at once
    THREADS = 20                    # fields of proc_pid_stat(5)
    START = 22


cdef unsigned long *PSEUDO = [
    0x9FA0,                         # proc
    0x62656572,                     # sysfs
    0x27E0EB,                       # cgroup
    0x63677270,                     # cgroup2
    0x1CD1,                         # devpts
    0x64626720,                     # debugfs
    0x74726163,                     # tracefs
    0x73636673,                     # securityfs
    0xCAFE4A11,                     # bpf
    0x62656570,                     # configfs
    0x6165676C,                     # pstore
    0xDE5E81E4,                     # efivarfs
    0x65735543,                     # fusectl
    0x42494E4D,                     # binfmt_misc
    0x19800202,                     # mqueue
    0xF97CFF8C,                     # selinuxfs
    0x6E736673,                     # nsfs
    0x67596969,                     # rpc_pipefs
    0x07655821,                     # resctrl
    0,
]


cdef int lookup(int directory, const char *path, int flags, unsigned long long resolve) noexcept nogil:
    """openat2(2); returns a descriptor or a negative errno."""
    cdef open_how how
    cdef long fd
    cdef int _attempt
    memset(&how, 0, sizeof(how))
    how.flags = <unsigned long long>(flags | O_CLOEXEC)
    how.resolve = resolve
    for _attempt in range(LOOKUPS):
        fd = syscall(SYS_openat2, directory, path, &how, sizeof(how))
        if fd >= 0:
            return <int>fd
        if errno != EAGAIN:         # EAGAIN: a rename on the way could have led outside; look again
            break
    return -errno


cdef bint ended(int pidfd) noexcept nogil:
    cdef pollfd waiter
    waiter.fd, waiter.events = pidfd, POLLIN
    if poll(&waiter, 1, 0) <= 0:
        return False
    return folder_ended(pidfd)


cdef bint folder_ended(int folder) noexcept nogil:
    """Whether the process has ended whose folder in /proc this is; a zombie has. True for what is no folder."""
    cdef int fd = openat(folder, b"stat", O_RDONLY | O_CLOEXEC)
    if fd < 0:
        return errno == ENOTDIR or errno == ENOENT or errno == ESRCH
    return start_in(fd) == 0


cdef uint64_t start_in(int fd) noexcept nogil:
    """When the process started whose proc_pid_stat(5) this is, which is closed; 0 when it has ended, or is a zombie."""
    cdef char text[512]             # number, command of up to 64 bytes in brackets, state, and so on
    cdef char *bracket
    cdef ssize_t size = read(fd, text, sizeof(text) - 1)
    close(fd)
    if size <= 0:
        return 0
    text[size] = 0
    bracket = <char *>memrchr(text, c')', <size_t>size)
    if bracket == NULL or bracket + 2 >= text + size:
        return 0
    if (bracket[2] == c'Z' or bracket[2] == c'X' or bracket[2] == c'x') and field_in(bracket + 2, THREADS) <= 1:
        return 0
    return field_in(bracket + 2, START)


cdef uint64_t field_in(const char *fields, int wanted) noexcept nogil:
    """A number from the rest of a line of proc_pid_stat(5) that begins with field 3."""
    cdef int field = 3
    while field < wanted and fields[0]:
        if fields[0] == c' ':
            field += 1
        fields += 1
    return strtoull(fields, NULL, 10)


cdef uint64_t process_start(int pid) noexcept nogil:
    """When the process started that has the number now; 0 when it has ended."""
    cdef char path[40]
    cdef int fd
    snprintf(path, sizeof(path), b"/proc/%d/stat", pid)
    fd = open(path, O_RDONLY | O_CLOEXEC)
    return start_in(fd) if fd >= 0 else 0


cdef int process_open(int pid, const char *name, int flags) noexcept nogil:
    """Open ``name`` in the folder of a process in /proc, or of a thread that still has it; else a negative errno."""
    cdef char path[64]
    cdef int fd, other
    snprintf(path, sizeof(path), b"/proc/%d/%s", pid, name)
    fd = open(path, flags | O_CLOEXEC)
    if fd >= 0:
        return fd
    fd = -errno
    if fd != -ENOENT and fd != -EINVAL:         # the latter is what mountinfo says
        return fd
    other = thread_open(pid, name, flags)
    return other if other >= 0 else fd


cdef int thread_open(int pid, const char *name, int flags) noexcept nogil:
    """Open ``name`` in the folder of any thread that has it; negative when there is none."""
    cdef char path[512]
    cdef char entries[TASKS]
    cdef const dirent64 *entry
    cdef long at, size
    cdef int fd = -1, tasks, _read
    snprintf(path, sizeof(path), b"/proc/%d/task", pid)
    tasks = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    if tasks < 0:
        return -1
    for _read in range(READS_MAX):
        size = syscall(SYS_getdents64, tasks, entries, sizeof(entries))
        if size <= 0:
            break
        at = 0
        while fd < 0 and at < size:
            entry = <const dirent64 *>(entries + at)
            at += entry.d_reclen
            snprintf(path, sizeof(path), b"%s/%s", entry.d_name, name)
            if entry.d_name[0] != c'.':
                fd = openat(tasks, path, flags | O_CLOEXEC)
        if fd >= 0:
            break
    close(tasks)
    return fd


cdef bint has_ended(const Place *place) noexcept nogil:
    """True if the container's process has ended, whoever has its number by now."""
    return place.start == 0 or process_start(place.pid) != place.start


cdef int place_open(const Place *place) noexcept nogil:
    """The root of a container's process, or a negative errno; ESRCH when the process has ended.

    The process is checked afterwards: while it lives, its number cannot have been given to another one.
    """
    cdef int fd = process_open(place.pid, b"root", O_PATH | O_DIRECTORY)
    if has_ended(place):
        if fd >= 0:
            close(fd)
        return -ESRCH
    return fd


cdef int below(int directory, const char *name) noexcept nogil:
    """Open a directory by its one name in another one; a negative errno, ENOTDIR for a link."""
    cdef int fd = openat(directory, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
    return fd if fd >= 0 else -errno


cdef int below_to_read(int directory, const char *name) noexcept nogil:
    """The same with a descriptor that can be read, which reports that the directory was opened."""
    cdef int fd = openat(directory, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC)
    return fd if fd >= 0 else -errno


cdef bint is_pseudo(int fd) noexcept nogil:
    """True if the file system shows the kernel's state, and holds nobody's files."""
    cdef statfs_t status
    cdef int i = 0
    if fstatfs(fd, &status) != 0:
        return False
    while PSEUDO[i] and PSEUDO[i] != status.f_type:
        i += 1
    return PSEUDO[i] != 0


cdef int step_below(int directory, const char *name, bint readable) noexcept nogil:
    """Open a directory in a directory of a tree; ENOENT (negative) where a pseudo file system is mounted there.

    Those are left out of a tree: /proc alone has thousands of directories, which come and go with every process. What
    leads into one is a mount, where openat2(2) stops; only then is the type asked for.
    """
    cdef int how = O_RDONLY | O_NONBLOCK if readable else O_PATH
    cdef int fd = lookup(directory, name, how | O_DIRECTORY | O_NOFOLLOW, RESOLVE_NO_XDEV)
    if fd != -EXDEV and fd != -ENOSYS and fd != -EPERM:     # the last two: there is no openat2
        return fd
    fd = below(directory, name)
    if fd >= 0 and is_pseudo(fd):
        close(fd)
        return -ENOENT
    if fd >= 0 and readable:
        close(fd)
        fd = below_to_read(directory, name)
    return fd


cdef void barrier(int directory) noexcept nogil:
    """Return when every change that can be seen in a directory by now has its events in the kernel's queue.

    What rename(2) and mkdir(2) do to a directory is seen a moment before its events are queued, but both happen with
    the directory locked. A name that the kernel does not have cached is looked up with that lock, and no name that is
    this long exists: nothing is read, written, or reported.
    """
    cdef char name[TOO_LONG + 1]
    cdef stat_t status
    memset(name, c'x', TOO_LONG)
    name[TOO_LONG] = 0
    fstatat(directory, name, &status, AT_SYMLINK_NOFOLLOW)


cdef int add_watch(Core *core, int fd, uint32_t mask) noexcept nogil:
    """Watch the directory behind an O_PATH descriptor, for ``mask`` more than before; a negative errno on failure."""
    cdef int wd
    if load_int(&core.shared):          # the working directory is that of other threads, too
        return watch_any(core, fd, mask | IN_ONLYDIR)
    if fchdir(fd) != 0:
        return -errno
    wd = inotify_add_watch(core.inotify_fd, b".", mask | IN_MASK_ADD | IN_ONLYDIR)
    return wd if wd >= 0 else -errno


cdef int watch_any(Core *core, int fd, uint32_t mask) noexcept nogil:
    """Watch what is behind an O_PATH descriptor, directory or not; a negative errno on failure."""
    cdef char path[40]
    cdef int wd
    snprintf(path, sizeof(path), b"/proc/self/fd/%d", fd)
    wd = inotify_add_watch(core.inotify_fd, path, mask | IN_MASK_ADD)
    return wd if wd >= 0 else -errno


cdef bint identify(int fd, Identity *identity) noexcept nogil:
    cdef statx_t status
    memset(identity, 0, sizeof(Identity))
    if statx(fd, b"", AT_EMPTY_PATH, STATX_INO | STATX_BTIME, &status) != 0:
        return False
    identity.valid = True
    identity.device = <uint64_t>status.stx_dev_major << 32 | status.stx_dev_minor
    identity.inode = status.stx_ino
    if status.stx_mask & STATX_BTIME:
        identity.born_s = status.stx_btime.tv_sec
        identity.born_ns = status.stx_btime.tv_nsec
    return True


cdef bint same_file(const Identity *a, const Identity *b) noexcept nogil:
    return (a.valid and b.valid and a.device == b.device and a.inode == b.inode
            and a.born_s == b.born_s and a.born_ns == b.born_ns)
