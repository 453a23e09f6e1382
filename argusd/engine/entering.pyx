# cython: language_level=3, boundscheck=False, wraparound=False
"""Looking paths up in a container: with openat2(2), or by entering its mount namespace and root.

Facts that shape this file:

* openat2(2) with RESOLVE_IN_ROOT needs no rights of its own and no thread of its own: an absolute symbolic link and
  ``..`` stay below the descriptor that it is given. Kernels before 5.6 do not have it, and old seccomp profiles answer
  EPERM to a call that they do not know.
* Without it a path is gone name by name, each opened with O_NOFOLLOW from the descriptor of the one before. Links are
  read and taken apart here, and ``..`` begins again at the root with one name less. The kernel itself is never given
  a ``..``: when the directory that has been reached is moved out of the root at that moment, its ``..`` is outside
  (openat2 answers EAGAIN there). Nor does it follow a link: a magic one of procfs leads anywhere.
* That alone stays inside. It is done by a thread that has entered the container's mount namespace and root all the
  same, so that whatever else the kernel would resolve there, it would resolve as the container does.
* setns(2) into a mount namespace is EINVAL for a thread that shares its root and working directory with others:
  unshare(CLONE_FS) comes first. Both are the root of the namespace then; chroot(2) enters the process' own.
* The C library opens files behind one's back: libgcc_s.so.1 when a thread is cancelled or calls pthread_exit(3),
  /proc/sys/vm/overcommit_memory when free(3) shrinks a heap. Inside, these would be the container's: code of its
  choice would run as root, a fifo would stop the thread. So between ``enter`` and ``leave`` there are system calls and
  moves of memory on the stack, and nothing else: no allocation, no lock, no Python, no end of the thread.
* One name that is opened from the descriptor of its directory without following links means the same from everywhere.
  Below a subject path nothing else is opened, so a walk through a tree does not enter for each step.
"""

from libc.errno cimport EACCES, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR, EPERM, ESRCH, errno
from libc.stdlib cimport abort
from libc.string cimport memcpy, memmove, memset, strlen

from argusd.engine.opening cimport below, has_ended, lookup, process_open
from argusd.engine.roots cimport root_open
from argusd.includes.linux cimport (
    CLONE_FS,
    CLONE_NEWNS,
    O_CLOEXEC,
    O_DIRECTORY,
    O_NOFOLLOW,
    O_PATH,
    O_RDONLY,
    RESOLVE_BENEATH,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    chdir,
    chroot,
    close,
    fchdir,
    fstat,
    open,
    openat,
    readlinkat,
    setns,
    stat_t,
    unshare,
    usleep,
    write,
)


cdef enum:
    LINKS_MAX = 40                  # symbolic links in one look-up, as in the kernel
    STEPS_MAX = 4096                # names in one look-up, those of link targets included
    PATH_SIZE = 4096
    REST_SIZE = 4 * PATH_SIZE       # of what is still to be gone: a path, and the targets of links in links
    LEAVE_TRIES = 1000


# A path on its way through a container's root, without the kernel's help.
cdef struct Steps:
    int fd                          # O_PATH descriptor of the directory reached
    size_t at                       # in rest
    size_t real_size
    int links
    int count
    char rest[REST_SIZE]            # what is still to be gone, with a zero byte at the end
    char real[REST_SIZE]            # the names gone through, each with a slash before it: the way back for ".."


cdef int openat2_missing() noexcept nogil:
    """0 when openat2(2) can be used, else the errno that says why not."""
    cdef int fd = lookup(-100, b"/", O_PATH | O_DIRECTORY, RESOLVE_IN_ROOT)     # -100 is AT_FDCWD
    if fd < 0:
        return -fd
    close(fd)
    return 0


cdef int entrance_init(Entrance *entrance, int way, bint apart) noexcept nogil:
    """Prepare the calling thread: it needs a working directory and a root of its own. 0 or an errno.

    A process ``apart`` has them. A thread gets them, but without CAP_SYS_ADMIN docker's seccomp profile forbids
    unshare(2) of any kind. openat2 can do without.
    """
    memset(entrance, 0, sizeof(Entrance))
    entrance.way = way
    entrance.root_fd = entrance.space_fd = entrance.home_space_fd = entrance.home_root_fd = -1
    entrance.home_fd = open(b".", O_PATH | O_DIRECTORY | O_CLOEXEC)
    entrance.shared = not apart and unshare(CLONE_FS) != 0
    if way == WAY_OPENAT2:
        return 0
    if entrance.shared:
        entrance.denied = DENIED_ENTER
        return errno
    entrance.home_space_fd = open(b"/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC)
    if entrance.home_space_fd >= 0:
        entrance.home_root_fd = open(b"/", O_PATH | O_DIRECTORY | O_CLOEXEC)
    return 0 if entrance.home_root_fd >= 0 else errno


cdef void close_one(int *fd) noexcept nogil:
    if fd[0] >= 0:
        close(fd[0])
    fd[0] = -1


cdef void entrance_free(Entrance *entrance) noexcept nogil:
    entrance_close(entrance)
    close_one(&entrance.home_fd)
    close_one(&entrance.home_root_fd)
    close_one(&entrance.home_space_fd)


cdef void go_home(Entrance *entrance) noexcept nogil:
    if entrance.home_fd < 0 or fchdir(entrance.home_fd) != 0:
        chdir(b"/")


cdef void entrance_close(Entrance *entrance) noexcept nogil:
    """Close all that is of the container, and put the working directory back."""
    close_one(&entrance.root_fd)
    close_one(&entrance.space_fd)
    if not entrance.shared:
        go_home(entrance)


cdef bint same_space(int one, int other) noexcept nogil:
    cdef stat_t first, second
    return (fstat(one, &first) == 0 and fstat(other, &second) == 0
            and first.st_dev == second.st_dev and first.st_ino == second.st_ino)


cdef int entrance_open(Entrance *entrance, Core *core, Place *place) noexcept nogil:
    """Turn to a container, by one of its processes; 0 or an errno, ESRCH when the process has ended."""
    cdef int error = 0
    entrance.denied = DENIED_NOTHING
    entrance.root_fd = root_open(core, place)
    if entrance.root_fd < 0:
        error = -entrance.root_fd
    elif entrance.way == WAY_SETNS:
        entrance.space_fd = process_open(place.pid, b"ns/mnt", O_RDONLY)
        if entrance.space_fd < 0:
            error = -entrance.space_fd
        if has_ended(place):
            error = ESRCH
        elif not error and same_space(entrance.space_fd, entrance.home_space_fd):
            close_one(&entrance.space_fd)       # such as a process of the host: its root is all there is to enter
    if not error:
        return 0
    if error == EACCES or error == EPERM:
        entrance.denied = DENIED_ROOT
    entrance_close(entrance)
    return error


# ---- inside: system calls and the stack only, see above

cdef int enter(Entrance *entrance) noexcept nogil:
    """Be inside from now on; 0 or an errno, and outside then."""
    cdef int error
    if entrance.space_fd >= 0 and setns(entrance.space_fd, CLONE_NEWNS) != 0:
        error = errno
    elif fchdir(entrance.root_fd) == 0 and chroot(b".") == 0:
        return 0
    else:
        error = errno
        leave(entrance)
    if error == EPERM:              # EACCES: the root is a directory that we may not search
        entrance.denied = DENIED_ENTER
    return error


cdef void leave(Entrance *entrance) noexcept nogil:
    """Be outside again. A thread that cannot leave (no memory, for seconds) must not go on in the container."""
    cdef const char *words = b"argusd: a thread cannot leave a container's mount namespace\n"
    cdef int _attempt
    for _attempt in range(LEAVE_TRIES):
        if ((entrance.space_fd < 0 or setns(entrance.home_space_fd, CLONE_NEWNS) == 0)
                and fchdir(entrance.home_root_fd) == 0 and chroot(b".") == 0):
            go_home(entrance)
            return
        usleep(5000)
    write(2, words, strlen(words))
    abort()


cdef int go_names(int directory, const char *names, size_t size) noexcept nogil:
    """Open a directory below another one, name by name, no link followed; a negative errno on failure."""
    cdef char name[256]
    cdef size_t at = 0, length
    cdef int fd = openat(directory, b".", O_PATH | O_DIRECTORY | O_CLOEXEC), further
    if fd < 0:
        return -errno
    while at < size:
        length = 0
        while at + length < size and names[at + length] != c'/':
            length += 1
        if length > 255:
            close(fd)
            return -ENAMETOOLONG
        if length:
            memcpy(name, names + at, length)
            name[length] = 0
            further = below(fd, name)
            close(fd)
            if further < 0:
                return further
            fd = further
        at += length + 1
    return fd


cdef int step_back(Steps *steps, int root) noexcept nogil:
    """One ``..``: the names gone through but for the last, again from the root."""
    while steps.real_size and steps.real[steps.real_size - 1] != c'/':
        steps.real_size -= 1
    if steps.real_size:
        steps.real_size -= 1
    return step_again(steps, root)


cdef int step_again(Steps *steps, int root) noexcept nogil:
    close(steps.fd)
    steps.fd = go_names(root, steps.real, steps.real_size)
    return 0 if steps.fd >= 0 else -steps.fd


cdef int step_link(Steps *steps, int root, const char *name) noexcept nogil:
    """The name is no directory: when it is a link, put its target in front of what is still to be gone."""
    cdef char target[PATH_SIZE]
    cdef size_t left
    cdef ssize_t size
    cdef int link = openat(steps.fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC)
    if link < 0:
        return errno
    size = readlinkat(link, b"", target, sizeof(target))
    close(link)
    if size < 0:
        return ENOTDIR                  # no link either
    steps.links += 1
    if steps.links > LINKS_MAX:
        return ELOOP
    left = strlen(steps.rest + steps.at) + 1
    if size == 0 or <size_t>size >= sizeof(target) or <size_t>size + 1 + left > REST_SIZE:
        return ENOENT if size == 0 else ENAMETOOLONG
    memmove(steps.rest + size + 1, steps.rest + steps.at, left)
    memcpy(steps.rest, target, <size_t>size)
    steps.rest[size] = c'/'
    steps.at = 0
    if target[0] != c'/':
        return 0
    steps.real_size = 0
    return step_again(steps, root)


cdef int step_name(Steps *steps, int root, const char *name, size_t size) noexcept nogil:
    cdef int further
    if size == 1 and name[0] == c'.':
        return 0
    if size == 2 and name[0] == c'.' and name[1] == c'.':
        return step_back(steps, root)
    further = below(steps.fd, name)
    if further == -ENOTDIR or further == -ELOOP:
        return step_link(steps, root, name)
    if further < 0:
        return -further
    close(steps.fd)
    steps.fd = further
    if steps.real_size + 1 + size > REST_SIZE:
        return ENAMETOOLONG
    steps.real[steps.real_size] = c'/'
    memcpy(steps.real + steps.real_size + 1, name, size)
    steps.real_size += 1 + size
    return 0


cdef int go_path(int root, const char *path) noexcept nogil:
    """Open the directory that a path leads to, its links followed within the root; a negative errno on failure."""
    cdef Steps steps
    cdef char name[256]
    cdef const char *begin
    cdef size_t size = strlen(path)
    cdef int error = 0
    if size >= PATH_SIZE:
        return -ENAMETOOLONG
    memcpy(steps.rest, path, size + 1)
    steps.at = steps.real_size = 0
    steps.links = steps.count = 0
    steps.fd = openat(root, b".", O_PATH | O_DIRECTORY | O_CLOEXEC)
    if steps.fd < 0:
        return -errno
    while not error:
        while steps.rest[steps.at] == c'/':
            steps.at += 1
        begin = steps.rest + steps.at
        size = 0
        while begin[size] != 0 and begin[size] != c'/':
            size += 1
        if size == 0:
            return steps.fd
        steps.at += size
        steps.count += 1
        if size > 255:
            error = ENAMETOOLONG
        elif steps.count > STEPS_MAX:
            error = ELOOP
        else:
            memcpy(name, begin, size)
            name[size] = 0
            error = step_name(&steps, root, name, size)
    if steps.fd >= 0:
        close(steps.fd)
    return -error

# ---- outside again


cdef int open_inside(Entrance *entrance, int space, int directory, const char *name) noexcept nogil:
    """Open a name in a directory of ours from the root of a mount namespace; a negative errno on failure."""
    cdef Entrance visit
    cdef int fd, error
    if entrance.shared:
        return -EPERM
    visit = entrance[0]
    visit.space_fd = space
    visit.home_space_fd = open(b"/proc/thread-self/ns/mnt", O_RDONLY | O_CLOEXEC)
    visit.home_root_fd = open(b"/", O_PATH | O_DIRECTORY | O_CLOEXEC)
    if visit.home_space_fd < 0 or visit.home_root_fd < 0:
        fd = -errno
    elif setns(space, CLONE_NEWNS) != 0:
        fd = -errno
    else:
        fd = openat(directory, name, O_RDONLY | O_CLOEXEC)
        error = errno
        leave(&visit)
        fd = fd if fd >= 0 else -error
    close_one(&visit.home_space_fd)
    close_one(&visit.home_root_fd)
    return fd


cdef int open_path(Entrance *entrance, const char *path) noexcept nogil:
    """Open the directory that a path of the container leads to, its links followed; a negative errno on failure."""
    cdef int fd
    if entrance.way == WAY_OPENAT2:
        return lookup(entrance.root_fd, path, O_PATH | O_DIRECTORY, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    fd = enter(entrance)
    if fd != 0:
        return -fd
    fd = go_path(entrance.root_fd, path)
    leave(entrance)
    return fd


cdef int open_plain_path(Entrance *entrance, const char *path) noexcept nogil:
    """Open the directory at a path from the container's root that has neither links nor ``..`` in it."""
    cdef const char *here = b"."
    return open_below(entrance, entrance.root_fd, path if path[0] else here)


cdef int open_name(Entrance *entrance, int directory, const char *name) noexcept nogil:
    """Open what a name stands for in a directory, a link itself; a negative errno on failure."""
    cdef int fd, error
    if entrance.way == WAY_OPENAT2:
        return lookup(directory, name, O_PATH | O_NOFOLLOW, RESOLVE_NO_MAGICLINKS)
    error = enter(entrance)
    if error:
        return -error
    fd = openat(directory, name, O_PATH | O_NOFOLLOW | O_CLOEXEC)
    error = errno
    leave(entrance)
    return fd if fd >= 0 else -error


cdef int open_below(Entrance *entrance, int directory, const char *names) noexcept nogil:
    """Open a directory some names below another one, no link followed; a negative errno on failure."""
    cdef int fd
    if entrance.way == WAY_OPENAT2:
        return lookup(directory, names, O_PATH | O_DIRECTORY | O_NOFOLLOW,
                      RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS)
    fd = enter(entrance)
    if fd != 0:
        return -fd
    fd = go_names(directory, names, strlen(names))
    leave(entrance)
    return fd
