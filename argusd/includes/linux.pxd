# Linux system calls and structures that Cython's own posix package lacks.

from libc.stdint cimport int32_t, uint32_t, uint64_t

cdef extern from "<sys/inotify.h>" nogil:
    cdef struct inotify_event:
        int32_t wd
        uint32_t mask
        uint32_t cookie
        uint32_t len
        char name[0]
    int IN_NONBLOCK, IN_CLOEXEC
    uint32_t IN_ACCESS, IN_MODIFY, IN_ATTRIB, IN_CLOSE_NOWRITE, IN_OPEN
    uint32_t IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE, IN_DELETE_SELF, IN_MOVE_SELF
    uint32_t IN_UNMOUNT, IN_Q_OVERFLOW, IN_IGNORED, IN_ONLYDIR, IN_MASK_ADD, IN_ISDIR
    int inotify_init1(int flags)
    int inotify_add_watch(int fd, const char *path, uint32_t mask)
    int inotify_rm_watch(int fd, int wd)

cdef extern from "<malloc.h>" nogil:
    int M_MMAP_THRESHOLD
    int mallopt(int parameter, int value)

cdef extern from "<sys/ioctl.h>" nogil:
    unsigned long FIONREAD
    int ioctl(int fd, unsigned long request, ...)

cdef extern from "<sys/eventfd.h>" nogil:
    int EFD_CLOEXEC, EFD_NONBLOCK
    int eventfd(unsigned int initial, int flags)

cdef extern from "<poll.h>" nogil:
    cdef struct pollfd:
        int fd
        short events
        short revents
    short POLLIN, POLLOUT
    int poll(pollfd *fds, unsigned long count, int timeout_ms)

cdef extern from "<sched.h>" nogil:
    int CLONE_FS, CLONE_FILES, CLONE_NEWNS
    int unshare(int flags)
    int setns(int fd, int nstype)

cdef extern from "<sys/mman.h>" nogil:
    int PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE, MADV_DONTNEED, MFD_CLOEXEC
    void *MAP_FAILED
    void *mmap(void *addr, size_t length, int prot, int flags, int fd, long offset)
    int munmap(void *addr, size_t length)
    int madvise(void *addr, size_t length, int advice)
    int memfd_create(const char *name, unsigned int flags)

cdef extern from "<sys/resource.h>" nogil:
    int PRIO_PROCESS
    int setpriority(int which, unsigned int who, int priority)

cdef extern from "<sys/vfs.h>" nogil:
    cdef struct statfs_t "statfs":
        unsigned long f_type
    int fstatfs(int fd, statfs_t *status)

cdef extern from "<linux/openat2.h>" nogil:
    cdef struct open_how:
        uint64_t flags
        uint64_t mode
        uint64_t resolve
    uint64_t RESOLVE_IN_ROOT, RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV

cdef extern from "<dirent.h>" nogil:
    int DT_UNKNOWN, DT_DIR, DT_LNK

cdef extern from "<fcntl.h>" nogil:
    int O_PATH, O_DIRECTORY, O_NOFOLLOW, O_CLOEXEC, O_NONBLOCK, O_RDONLY, O_WRONLY, O_CREAT, O_EXCL, O_APPEND
    int O_LARGEFILE, O_NOATIME, O_NOCTTY, O_RDWR
    int F_DUPFD_CLOEXEC
    int F_GETFD
    int open(const char *path, int flags, ...)
    int openat(int dirfd, const char *path, int flags, ...)
    int fcntl(int fd, int command, ...)

cdef extern from "<sys/stat.h>" nogil:
    cdef struct stat_t "stat":
        unsigned long st_dev
        unsigned long st_ino
        unsigned int st_mode
        unsigned int st_uid
        unsigned long st_nlink
        long st_size
    int S_ISDIR(unsigned int mode)
    int S_ISREG(unsigned int mode)
    int fstat(int fd, stat_t *status)
    int fchmod(int fd, unsigned int mode)
    int AT_SYMLINK_NOFOLLOW
    int fstatat(int dirfd, const char *path, stat_t *status, int flags)

    cdef struct statx_timestamp:
        long long tv_sec
        unsigned int tv_nsec
    cdef struct statx_t "statx":
        unsigned int stx_mask
        unsigned long long stx_attributes
        unsigned int stx_nlink
        unsigned short stx_mode
        unsigned long long stx_ino
        unsigned int stx_dev_major
        unsigned int stx_dev_minor
        statx_timestamp stx_btime
    unsigned int STATX_TYPE, STATX_INO, STATX_BTIME, STATX_NLINK
    int AT_EMPTY_PATH, AT_STATX_DONT_SYNC
    int statx(int dirfd, const char *path, int flags, unsigned int mask, statx_t *status)
    ssize_t readlinkat(int dirfd, const char *path, char *buffer, size_t size)

cdef extern from "<sys/syscall.h>" nogil:
    long SYS_openat2, SYS_getdents64, SYS_gettid

cdef extern from "<unistd.h>" nogil:
    long syscall(long number, ...)
    int close(int fd)
    ssize_t read(int fd, void *buffer, size_t count)
    ssize_t pread(int fd, void *buffer, size_t count, long offset)
    ssize_t pwrite(int fd, const void *buffer, size_t count, long offset)
    ssize_t write(int fd, const void *buffer, size_t count)
    ssize_t readlink(const char *path, char *buffer, size_t size)
    int fchdir(int fd)
    int chdir(const char *path)
    int chroot(const char *path)
    int unlink(const char *path)
    int ftruncate(int fd, long length)
    int usleep(unsigned int microseconds)
    unsigned int geteuid()

cdef extern from * nogil:
    """
    struct argusd_dirent64 {
        unsigned long long d_ino;
        long long d_off;
        unsigned short d_reclen;
        unsigned char d_type;
        char d_name[];
    };
    """
    # The kernel's own layout of a getdents64(2) entry; glibc gives it no name.
    cdef struct dirent64 "argusd_dirent64":
        unsigned short d_reclen
        unsigned char d_type
        char d_name[0]

cdef extern from "<dlfcn.h>" nogil:
    int RTLD_NOW
    void *dlopen(const char *path, int flags)

cdef extern from "<string.h>" nogil:
    char *strerror_r(int number, char *buffer, size_t size)     # that of GNU: returns the text
    void *memrchr(const void *text, int byte, size_t size)
    void *memmem(const void *haystack, size_t size, const void *needle, size_t needle_size)

cdef extern from "<sys/random.h>" nogil:
    ssize_t getrandom(void *buffer, size_t size, unsigned int flags)

cdef extern from * nogil:
    int lowest_bit "__builtin_ctz"(unsigned int value)
