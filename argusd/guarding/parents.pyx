# cython: language_level=3, boundscheck=False, wraparound=False
"""The parent of a process that waits for an answer.

Facts about processes that shape this file:

* The parent is told by a pidfd (PIDFD_GET_INFO, Linux 6.13), else by /proc/PID/stat. There the name of the command
  stands in brackets and may hold any byte but zero, brackets too: what follows the last one counts. Files in /proc
  cannot be guarded, so that opening one makes no event.
* To open, ask and close a pidfd takes 5 us, to ask one that is open 0.6; the stat file 7 and 3. So the descriptors of
  the processes that asked last are kept. What is kept is never the answer: a process gets another parent at any time.
* A descriptor of either kind is of one process, not of its number, and is good for nothing (ESRCH) once that process
  is reaped. As long as it is not, nobody else has its number. So a kept descriptor that still tells a parent is that of
  the process that asks by that number now.
"""

from libc.errno cimport ESRCH, errno
from libc.stdio cimport snprintf
from libc.stdlib cimport atoi
from libc.string cimport memset

from argusd.guarding.table cimport PROCESSES, Process
from argusd.includes.fanotify cimport PIDFD_GET_INFO, SYS_pidfd_open, pidfd_info
from argusd.includes.linux cimport O_CLOEXEC, O_RDONLY, close, ioctl, memrchr, openat, pread, syscall


cdef int stat_parent(const char *text, size_t size) noexcept nogil:
    """Field 4 of proc_pid_stat(5); 0 when it is not there."""
    cdef const char *bracket = <const char *>memrchr(text, c')', size)
    if bracket == NULL or bracket + 4 >= text + size:
        return 0
    return atoi(bracket + 4)        # ") S 123"


cdef int parent_now(const Process *process) noexcept nogil:
    """-1 when the process has ended, or cannot be asked in this way."""
    cdef pidfd_info info
    cdef char text[512]
    cdef ssize_t size
    if not process.by_stat:
        memset(&info, 0, sizeof(info))
        return <int>info.ppid if ioctl(process.fd, PIDFD_GET_INFO, &info) == 0 else -1
    size = pread(process.fd, text, sizeof(text) - 1, 0)
    if size <= 0:
        return -1
    text[size] = 0
    return stat_parent(text, <size_t>size)


cdef int parent_by_pidfd(Group *group, Process *process) noexcept nogil:
    """Open a process and ask it; -1 when that cannot be done."""
    cdef int parent
    process.fd, process.by_stat = <int>syscall(SYS_pidfd_open, process.pid, 0), False
    if process.fd < 0:
        return -1
    parent = parent_now(process)
    if parent < 0:
        group.pidfds_mute = errno != ESRCH
        close(process.fd)
    return parent


cdef int parent_by_stat(Group *group, Process *process) noexcept nogil:
    cdef char path[32]
    cdef int parent
    snprintf(path, sizeof(path), b"%d/stat", process.pid)
    process.fd, process.by_stat = openat(group.proc_fd, path, O_RDONLY | O_CLOEXEC), True
    if process.fd < 0:
        return -1
    parent = parent_now(process)
    if parent < 0:
        close(process.fd)
    return parent


cdef int meet(Group *group, Asked *asked, Process *process) noexcept nogil:
    """Keep a descriptor of the process in the place of another one, which is closed after the answer."""
    cdef int parent = -1
    if process.pid:
        asked.stale_fd = process.fd
    process.pid = asked.pid
    if not group.pidfds_mute:
        parent = parent_by_pidfd(group, process)
    if parent < 0:
        parent = parent_by_stat(group, process)
    if parent < 0:
        process.pid = 0
    return parent


cdef int ask_parent_pid(Group *group, Asked *asked) noexcept nogil:
    """The parent of the process that asks; 0 when it has none that we can see, or has ended."""
    cdef Process *process = &group.processes[<unsigned int>asked.pid % PROCESSES]
    if asked.parent_pid >= 0:
        return asked.parent_pid
    asked.parent_pid = 0
    if asked.pid <= 0:              # of a PID namespace that we do not see
        return 0
    if process.pid == asked.pid:
        asked.parent_pid = parent_now(process)
    if process.pid != asked.pid or asked.parent_pid < 0:
        asked.parent_pid = meet(group, asked, process)
    if asked.parent_pid < 0:
        asked.parent_pid = 0
    return asked.parent_pid


cdef void parents_forget(Group *group) noexcept nogil:
    """Close what is kept."""
    cdef int i
    for i in range(PROCESSES):
        if group.processes[i].pid:
            close(group.processes[i].fd)
            group.processes[i].pid = 0
