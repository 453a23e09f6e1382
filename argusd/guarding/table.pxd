# What is guarded, as one responder sees it; and the group through which it is asked.

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from argusd._records cimport Lines
from argusd.includes.pthread cimport pthread_mutex_t, pthread_t

cdef enum:
    ITSELF = 0                      # a file
    FOLDER = 1                      # a directory and its direct children
    NAME = 2                        # whatever has that name in a directory

cdef enum:
    OPEN = 0                        # which of the two events, as an index
    ACCESS = 1

cdef enum:
    BUCKETS = 4096                  # of each hash table
    STRAYS = 16
    LINKS = 1024
    PROCESSES = 64
    RING = 4 * 1024 * 1024          # bytes of lines on their way, a power of two

cdef enum:
    UNCHECKED = 0                   # Entry.check
    CHECKING = 1                    # our own open of it is on its way, and is to be refused
    CHECKED = 2                     # it was seen

cdef struct Entry

# One guard subject in one container, as one group has it. The responder alone reads and changes it.
cdef struct Subject:
    const Lines *lines
    int number
    int init                        # the container's
    bint owner_allowed              # that and its children are never refused
    bint audit                      # the kernel's audit log is to have the answer
    bint on
    uint64_t told                   # number of the last event that is told about
    Entry *entries
    Subject *next                   # of those that are of no use any more

# One thing in the file system that a subject path stands for. But for ``check`` it does not change while it is in use.
cdef struct Entry:
    Subject *subject
    int kind
    bint deny
    uint32_t bits                   # FAN_OPEN_PERM, FAN_ACCESS_PERM
    uint64_t device                 # of the file, or of the directory
    uint64_t inode
    uint64_t born                   # in nanoseconds since 1970, 0 where the file system does not tell or changes it
    uint64_t mount                  # through which it was found; 0 where the kernel does not tell
    bint layered                    # files in one directory may have other device numbers than it
    char *place                     # where it is, as the kernel tells it of what is opened; empty when unknown
    size_t place_size
    uint64_t place_hash
    char *path                      # the subject path
    size_t path_size
    char *name                      # of NAME
    size_t name_size
    int check
    Entry *next_by_inode
    Entry *next_by_place
    Entry *next_of_subject
    Entry *next                     # of the same subject path, for the marker
    int group

cdef enum:
    NOTE_ADD = 0
    NOTE_REMOVE = 1
    NOTE_SWITCH = 2
    NOTE_END = 3

# A change of the table, on its way to the responder and then to the reporter, which frees what is of no use any more.
cdef struct Note:
    Note *next
    int kind
    Entry *entry
    Subject *subject
    Subject **subjects              # the first ``on_count`` are switched on, then ``off_count`` off
    int on_count
    int off_count

# A line on its way to the reporter; the path follows. Sizes are multiples of 8.
cdef struct Record:
    uint32_t size
    bint filler                     # nothing: the rest of the ring up to its end
    bint denied
    bint access
    bint directory
    uint32_t path_size
    int64_t realtime_ns
    const Subject *subject

# A file with a mark that nobody needs, on its way to the reporter.
cdef struct Stray:
    int left                        # a descriptor of it plus 1; 0: this place is free
    uint64_t parent_device          # the directory in which it is
    uint64_t parent_inode           # 0: not known

# A process whose parent was asked for.
cdef struct Process:
    int pid                         # 0: this place is free
    int fd                          # a pidfd, or a descriptor of /proc/PID/stat
    bint by_stat

cdef struct Group

ctypedef void (*order_body)(Group *group) noexcept nogil

# Descriptors are those of the responder's own table, but for three that are the daemon's.
cdef struct Group:
    int fd
    int no_audit                    # errno that keeps answers from the kernel's audit log, 0 when they can get there
    bint remote                     # on file systems whose server may not answer
    int wake_fd                     # an eventfd, in both tables: there are notes, or the end has come
    int order_fd                    # the daemon's: orders to the marker
    int marker_fd                   # the other end of that
    pthread_t marker
    bint serving                    # the responder has begun, and was not joined
    bint marking                    # likewise the marker
    order_body order                # what the marker is to do, and with what; changed with the lock held
    int order_file
    unsigned int order_how
    uint64_t order_mask
    int order_error
    int begun                       # errno that kept the responder from its work, else 0
    int stopping
    int broken                      # the kernel gave something that is not understood: the group is closed
    pthread_t thread
    void *responder                 # its working memory
    int links_fd                    # /proc/thread-self/fd
    int links[LINKS]                # in there, O_PATH, by the number of the descriptor, each with 1 added
    int proc_fd                     # /proc
    Process processes[PROCESSES]    # by the remainder of the pid
    bint pidfds_mute                # the kernel tells no parent by a pidfd
    int self

    # The responder's own.
    Entry *by_inode[BUCKETS]
    Entry *by_place[BUCKETS]
    uint32_t covering               # FOLDER and NAME of subjects that are on
    uint32_t denying[2]             # of those, denied to somebody, by event
    uint32_t audited                # entries of subjects that are on, and to be audited
    uint64_t number                 # of the event that is told about

    # Between threads, without locks.
    void *inbox                     # Note: to the responder
    void *spent                     # Note: to the reporter
    Stray found[STRAYS]             # to the reporter
    int strays                      # marks that nobody needs, and that may have died with their files since
    int strays_at[BUCKETS]          # of these, by inode
    int tries                       # left to find one of them; each new stray gives some
    char *ring
    unsigned long long head         # bytes ever written to the ring
    unsigned long long tail         # bytes ever read
    unsigned long long allowed
    unsigned long long denied
    unsigned long long dropped      # lines
    unsigned long long failed       # events that could not be read: the kernel has denied them
    int *reporter_waits
    int reporter_fd

    # The markers'.
    pthread_mutex_t lock
    void *marks[BUCKETS]            # Mark
    uint32_t mark_count

cdef uint64_t hash_text(const char *text, size_t size) noexcept nogil
cdef uint32_t inode_bucket(uint64_t device, uint64_t inode) noexcept nogil
cdef bint note_send(Group *group, int kind, Entry *entry, Subject *subject) noexcept nogil
cdef void note_push(Group *group, Note *note) noexcept nogil
cdef void notes_take(Group *group) noexcept nogil
cdef void entry_free(Entry *entry) noexcept nogil
