# fanotify(7), and what a responder asks the kernel about an event.

from libc.stdint cimport int32_t, uint16_t, uint32_t, uint64_t, uint8_t

cdef extern from "<sys/fanotify.h>" nogil:
    cdef struct fanotify_event_metadata:
        uint32_t event_len
        uint8_t vers
        uint16_t metadata_len
        uint64_t mask
        int32_t fd
        int32_t pid
    cdef struct fanotify_response:
        int32_t fd
        uint32_t response
    unsigned int FAN_CLASS_CONTENT, FAN_CLOEXEC, FAN_NONBLOCK, FAN_UNLIMITED_QUEUE
    unsigned int FAN_UNLIMITED_MARKS
    unsigned int FAN_ENABLE_AUDIT, FAN_MARK_ADD, FAN_MARK_REMOVE, FAN_MARK_FLUSH
    uint32_t FAN_ALLOW, FAN_DENY, FAN_AUDIT
    uint64_t FAN_OPEN_PERM, FAN_ACCESS_PERM, FAN_ONDIR, FAN_EVENT_ON_CHILD
    int FANOTIFY_METADATA_VERSION
    int fanotify_init(unsigned int flags, unsigned int event_flags)
    int fanotify_mark(int group, unsigned int flags, uint64_t mask, int directory, const char *path)

cdef extern from "<sys/syscall.h>" nogil:
    long SYS_pidfd_open

cdef extern from * nogil:
    """
    #include <sys/stat.h>
    #include <sys/ioctl.h>
    #include <linux/nsfs.h>

    /* Newer than the headers of many systems: Linux 5.8, 5.8, 5.12, 6.13. */
    #ifndef STATX_MNT_ID
    #define STATX_MNT_ID 0x1000U
    #endif
    #ifndef STATX_ATTR_MOUNT_ROOT
    #define STATX_ATTR_MOUNT_ROOT 0x2000
    #endif
    #define ARGUSD_RESOLVE_CACHED 0x20ULL
    struct argusd_pidfd_info {
        unsigned long long mask, cgroupid;
        unsigned int pid, tgid, ppid, ruid, rgid, euid, egid, suid, sgid, fsuid, fsgid;
        int exit_code;
    };
    #define ARGUSD_PIDFD_GET_INFO _IOWR(0xFF, 11, struct argusd_pidfd_info)
    /* Of old headers' struct statx, the place where the kernel puts stx_mnt_id. */
    #define argusd_mount_of(status) (*(unsigned long long *)((char *)(status) + 0x90))
    """
    unsigned long NS_GET_USERNS
    unsigned int STATX_MNT_ID
    uint64_t STATX_ATTR_MOUNT_ROOT
    uint64_t RESOLVE_CACHED "ARGUSD_RESOLVE_CACHED"
    cdef struct pidfd_info "argusd_pidfd_info":
        uint64_t mask
        uint32_t ppid
    unsigned long PIDFD_GET_INFO "ARGUSD_PIDFD_GET_INFO"
    uint64_t mount_of "argusd_mount_of"(const void *status)

cdef extern from * nogil:
    """
    static inline void argusd_push(void **head, void **next, void *item)
    {
        void *first = __atomic_load_n(head, __ATOMIC_RELAXED);
        do
            *next = first;
        while (!__atomic_compare_exchange_n(head, &first, item, 1, __ATOMIC_RELEASE, __ATOMIC_RELAXED));
    }
    static inline void *argusd_take(void **head)
    {
        return __atomic_exchange_n(head, (void *)0, __ATOMIC_ACQUIRE);
    }
    """
    # A stack that any thread may push to and one takes whole, without a lock. ``next`` is the item's own link.
    void stack_push "argusd_push"(void **head, void **next, void *item)
    void *stack_take "argusd_take"(void **head)
