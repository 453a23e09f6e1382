# What a twin is made of: clone(2) with shared memory, and one byte with one descriptor over a socket.

cdef extern from "<sched.h>" nogil:
    int CLONE_VM
    int clone(int (*body)(void *) noexcept nogil, void *stack, int flags, void *argument)

cdef extern from "<signal.h>" nogil:
    int SIGKILL

cdef extern from "<sys/prctl.h>" nogil:
    int PR_SET_PDEATHSIG, PR_SET_NAME
    int prctl(int option, unsigned long argument)

cdef extern from "<sys/socket.h>" nogil:
    int AF_UNIX, SOCK_SEQPACKET, SOCK_CLOEXEC, SHUT_RDWR
    int shutdown(int end, int how)
    int socketpair(int domain, int kind, int protocol, int *ends)

cdef extern from "<sys/wait.h>" nogil:
    int __WALL, P_PID, WEXITED, WNOWAIT
    bint WIFSIGNALED(int status)
    int WTERMSIG(int status)

cdef extern from "<sys/mman.h>" nogil:
    int MAP_STACK, PROT_NONE
    int mprotect(void *addr, size_t length, int protection)

cdef extern from "<unistd.h>" nogil:
    int getpid()
    int getppid()
    int dup2(int old, int new)

cdef extern from "<sys/syscall.h>" nogil:
    long SYS_wait4, SYS_waitid, SYS_exit_group

cdef extern from * nogil:
    """
    #include <errno.h>
    #include <string.h>
    #include <sys/socket.h>
    #include <sys/syscall.h>
    #include <unistd.h>

    #ifndef SYS_close_range
    #define SYS_close_range 436
    #endif

    /* ThreadSanitizer follows threads only. */
    #ifdef __SANITIZE_THREAD__
    #define ARGUSD_TWINS 0
    #else
    #define ARGUSD_TWINS 1
    #endif

    static int argusd_pass_byte(int end, int fd)
    {
        char byte = 0;
        struct iovec part = {&byte, 1};
        union { char room[CMSG_SPACE(sizeof(int))]; struct cmsghdr aligned; } control;
        struct msghdr message;
        ssize_t sent;
        memset(&message, 0, sizeof(message));
        message.msg_iov = &part;
        message.msg_iovlen = 1;
        if (fd >= 0) {
            memset(&control, 0, sizeof(control));
            message.msg_control = control.room;
            message.msg_controllen = sizeof(control.room);
            struct cmsghdr *head = CMSG_FIRSTHDR(&message);
            head->cmsg_level = SOL_SOCKET;
            head->cmsg_type = SCM_RIGHTS;
            head->cmsg_len = CMSG_LEN(sizeof(int));
            memcpy(CMSG_DATA(head), &fd, sizeof(int));
        }
        do
            sent = syscall(SYS_sendmsg, end, &message, MSG_NOSIGNAL);
        while (sent < 0 && errno == EINTR);
        return sent == 1 ? 0 : sent < 0 ? errno : EPIPE;
    }

    /* 1, and the descriptor that came with it or -1; 0 at the end; else a negative errno. */
    static int argusd_take_byte(int end, int *fd)
    {
        char byte;
        struct iovec part = {&byte, 1};
        union { char room[CMSG_SPACE(sizeof(int))]; struct cmsghdr aligned; } control;
        struct msghdr message;
        ssize_t got;
        *fd = -1;
        do {
            memset(&message, 0, sizeof(message));
            message.msg_iov = &part;
            message.msg_iovlen = 1;
            message.msg_control = control.room;
            message.msg_controllen = sizeof(control.room);
            got = syscall(SYS_recvmsg, end, &message, MSG_CMSG_CLOEXEC);
        } while (got < 0 && errno == EINTR);
        if (got <= 0)
            return got < 0 ? -errno : 0;
        for (struct cmsghdr *head = CMSG_FIRSTHDR(&message); head; head = CMSG_NXTHDR(&message, head))
            if (head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_RIGHTS)
                memcpy(fd, CMSG_DATA(head), sizeof(int));
        return 1;
    }
    """
    bint ARGUSD_TWINS
    long SYS_close_range
    int pass_byte "argusd_pass_byte"(int end, int fd)
    int take_byte "argusd_take_byte"(int end, int *fd)
