# What is watched, in memory: subscriptions, the trees of their subject paths, and the kernel's watch descriptors.
#
# Everything here is guarded by Core's lock. Nodes are named by index, because the arena moves when it grows; an index
# that was kept while the lock was not held is good only together with the node's serial number.

from libc.stdint cimport int64_t, uint32_t, uint64_t

from argusd._output cimport Sink
from argusd._records cimport Buffer, Lines
from argusd.engine.queues cimport Index, Item, Key, Queue
from argusd.guarding.guards cimport Guard, Guarded
from argusd.includes.pthread cimport pthread_cond_t, pthread_mutex_t

cdef enum:
    EVENT_KINDS = 13            # the twelve kernel events and the queue overflow
    OVERFLOW_INDEX = 12

cdef enum:
    NODE_INDEXED = 1            # found by (parent, name)
    NODE_CREATED = 2            # made while we watched: what is inside is new, and reported
    NODE_QUEUED = 4             # a job for it waits
    NODE_QUIET = 8              # armed without IN_OPEN, IN_ACCESS, IN_CLOSE_NOWRITE until our own reads are over
    NODE_LIMBO = 16             # moved from its place, not yet known where to
    NODE_DISPLACED = 32         # something was moved onto its place: overwritten, or half of an exchange
    NODE_WINDOW = 64            # a Window stands open for it
    NODE_MOVED = 128            # has moved since the last attempt to arm it
    NODE_DEPARTED = 256         # a subject's file that lost its name: only its end is still reported
    NODE_RELIST = 512           # its subdirectories are within maxDepth now, and to be found
    NODE_UNMOUNTED = 1024       # its file system goes, and the directory under it comes back
    NODE_FIRST = 2048           # armed by the first walk of its subscription
    NODE_ORPHAN = 4096          # removed while somebody has it open: its name is the whole path that it had
    NODE_UNLISTED = 8192        # its subdirectories are not yet known
    NODE_ENDING = 16384         # its watch is gone, but what it told until then is still held back
    NODE_RESCAN = 32768         # events were lost: it is to be listed again, and all that is known below looked at

cdef struct Node:
    uint32_t parent             # 0 for the top of a tree
    uint32_t first_child
    uint32_t next_sibling
    uint32_t prev_sibling
    uint32_t next_on_wd         # next node with the same watch descriptor
    uint32_t serial             # changes whenever the index is used for another directory
    uint32_t mark               # of a top: events from before it are not about what it watches
    uint32_t listed             # the mark behind its listing: from there on all that is in it is known; 0: none
    int wd                      # -1 when not armed
    unsigned short flags
    unsigned char name_size     # a file name has at most 255 bytes
    unsigned char attempts      # to reach it, since it was last found
    char *name
    Root *root

# Which file a path stands for; good as long as the file is not deleted (then its number may be used again).
cdef struct Identity:
    bint valid
    uint64_t device
    uint64_t inode
    int64_t born_s              # 0 where the file system does not tell
    uint32_t born_ns

# One step of looking up a subject path: a name in a directory. What happens to it may change what the path means.
cdef struct Anchor:
    int wd
    unsigned char name_size
    bint last                   # the last name of the path as the user wrote it
    bint own                    # the name of the file itself, not of a directory or link on the way to it
    bint present                # the name is there, as far as events tell
    bint fresh                  # not looked for yet
    uint32_t round              # of the look-up that used it
    uint32_t mark               # before it events are older than this anchor: what they told of was seen by the look-up
    char *name
    Root *root
    Anchor *next_on_wd          # in the bucket of its watch descriptor
    Anchor *next_in_root

# One subject path in one container.
cdef struct Root:
    Subscription *subscription
    char *path                  # as the user gave it, normalised
    size_t path_size
    uint32_t top                # 0 when the path stands for nothing
    uint32_t next_top           # what it was found to stand for, until everything before that has been reported
    uint32_t departed           # a file that lost this name but lives on, for its end to be reported
    bint departing              # that it lost the name is still to be told by an IN_ATTRIB of its own
    int follow_fd               # O_PATH descriptor of a followMove subject, else -1
    int next_follow_fd          # of next_top
    bint beyond                 # where the followed file is, its path is too long to be told or looked up
    int error                   # errno that kept it from being armed, else 0
    Anchor *anchors
    Buffer real                 # the path without links, as it was when last looked up
    uint32_t round
    bint arming                 # the first walk is not over: the walker thread leaves it alone
    bint called                 # and a look-up is to be done when it is
    bint queued                 # a look-up is to be done
    bint starved                # it is to be done when there may be room again
    bint busy                   # a walker hangs with a piece of work for it
    bint looking                # and one is being done
    Root *next_queued
    bint rescan                 # with everything below: events were lost
    bint unsure                 # a step of the look-up has changed: what comes now is held back
    bint unmounted              # the file system of the file is about to go
    bint away                   # the file is known to live at another place, and may come back
    bint moved                  # and so that the old file, if it lives, may come back
    bint elsewhere              # and so that it has not lost its own name there, or got another one
    uint64_t fence              # behind the last look-up, 0 when that is settled
    bint unsettled              # is in Core.unsettled
    Root *next_unsettled
    Identity known              # what was last reported or armed
    Identity found              # by the last look-up
    bint directory              # what was found
    Buffer triggers             # TRIGGER_* of each arrival at an anchor, not yet reported
    Buffer held                 # events that wait for the look-up
    bint left                   # the file watched has lost the path
    size_t left_at              # how much had been held back by then
    size_t back_at              # and when something last came to the path since then
    bint mute                   # what happens is not under this path: the tree takes it in, nobody is told
    Guarded guarded             # of a guard's path
    int unguarded               # errno that kept the last look-up from guarding it, else 0

cdef enum:
    TRIGGER_LAST = 1            # at the last name of the path
    TRIGGER_MOVED = 2           # IN_MOVED_TO, else IN_CREATE
    TRIGGER_DIRECTORY = 4
    TRIGGER_OVER = 8            # over something that was there
    ANCHOR_BUCKETS = 4096

cdef struct Job:
    uint32_t node
    uint32_t serial

cdef struct Ring:
    Job *jobs
    uint32_t first
    uint32_t count
    uint32_t capacity

# Through next_queued.
cdef struct RootList:
    Root *first
    Root *last

# A container's root, for as long as its init process lives; see places.pyx. The number, the descriptor and what the
# walker alone writes (mounts_took_ns, mounts_told) need no lock.
cdef struct Place:
    int pid
    int pidfd
    uint64_t start              # of the process, in clock ticks since boot, as proc_pid_stat(5) has it
    int users
    char *mounts                # /proc/PID/mountinfo when it was last looked at
    size_t mounts_size
    int64_t mounts_ns           # when to look again, by the monotonic clock
    int64_t mounts_took_ns      # what the last look has cost
    bint mounts_doubt           # one has gone: another one, with the same line, may be there when it is looked at again
    bint mounts_told            # that there are more than are looked at
    uint32_t watches            # inodes that are watched for it
    Ring starved                # directories that could not be watched: tried again when there may be room
    uint32_t starved_before     # how many there were before the last try
    uint32_t starved_limit      # of the ring: then those that are gone are taken out
    uint32_t starved_now        # those in the ring, and subject paths that wait likewise
    uint32_t starved_most       # at once, since all was watched
    uint32_t tries              # how many are tried at once
    int starved_by              # a subscription of theirs
    int starved_told            # bits 1 << NOTICE_*: said since all was watched
    bint root_known             # what follows is the container's root, as it was when it was first entered
    uint64_t root_mount
    uint64_t root_device
    uint64_t root_inode
    uint64_t root_program       # tells what process 1 has executed since
    int root_by                 # another process that has it, 0 when none was looked for
    bint root_left              # process 1 has another one, which was told
    Ring jobs                   # see dispatch.pyx
    Ring aside                  # until what hangs has ended
    int hung                    # pieces of work
    bint ready                  # is in Core.ready_first
    Place *next_ready
    Place *next

# Made and freed under the GIL; the reader adds to the counts of a subscription that it finds under Core's lock.
cdef struct Counter:
    int users                   # subscriptions; under the GIL
    bint released               # its number was given back: the last user frees it; under the GIL
    unsigned long long counts[EVENT_KINDS]
    uint64_t overflow           # number of the last overflow counted here

# One subject in one container.
cdef struct Subscription:
    int number
    bint on                     # reports
    bint cancelled
    int users                   # walks under way
    uint32_t mask               # events that are reported
    bint recursive
    bint only_dir
    bint follow_move
    int max_depth               # 0: no limit
    int ignored_count
    char **ignored
    int root_count
    Root *roots
    Place *place
    const Lines *lines
    Guard *guard                # its paths are guarded, and nothing of them is reported; else NULL
    Counter *counter
    uint64_t reported           # number of the last event reported: one report per event
    uint64_t directories        # armed by walks
    Subscription *next

cdef struct WdEntry:
    int wd                      # 0: free place of the table
    uint32_t mask               # what the kernel watches for, and the flags below
    uint32_t first              # first node; 0 and not ANCHORED: the watch waits to be removed

cdef enum:
    ANCHORED = 0x80000000       # in WdEntry.mask, never given to the kernel: there are anchors on it
    LOOKED = 0x40000000         # likewise: a look has found it that is not taken over yet
    RELEASED = 0x20000000       # likewise: it is among those that wait to be removed
    REMOVING = 0x10000000       # likewise: it is being removed, and nothing may hang on it any more

# Names in a directory that is being searched; see Window.
cdef struct Name:
    char *bytes
    unsigned short size
    bint seen                   # an event has named it
    bint directory

# From the moment a new directory is watched until every event that was queued before its listing ended has been seen:
# what existed before the watch stood is told from what came after it, so that each is reported as created once.
cdef struct Window:
    uint32_t node
    uint32_t serial
    Item due                    # behind the listing; in no queue while that goes on
    Key by_node
    Name *names
    uint32_t count
    uint32_t capacity
    uint32_t *index             # hash table of positions + 1 in names
    uint32_t index_capacity
    bint repair                 # of a directory that was watched before: reported is only what repair_since says

# A Kubernetes volume's ..data was swapped: the links through it, found by a listing, are reported as modified.
cdef struct Swap:
    uint32_t node
    uint32_t serial
    Item due                    # for the walker, and then behind its listing
    Key by_node                 # until the walker has taken it
    uint32_t times              # that it was swapped before then
    Name *names
    uint32_t count
    uint32_t capacity

# The OPEN, ACCESS and CLOSE_NOWRITE that one listing of ours causes on one watch descriptor.
cdef struct Echo:
    int wd
    char *name                  # NULL: on the directory itself
    int opens, accesses, closes  # how many are still to be dropped
    Item due                    # of Core.echoes_open while the listing goes on
    Key by_wd
    void *walk                  # whose listing it is

# A directory that left its place: held back until it is known whether it stays in the tree.
cdef struct Limbo:
    uint32_t cookie
    uint32_t node
    uint32_t serial
    Item due                    # the rest of the rename is waited for; behind the mark it does not come any more
    Item holding                # while there is something in deferred
    Key by_node
    Key by_cookie               # when that is not 0
    Key by_place                # what was displaced: its parent and name
    Key by_claim                # when that is not 0
    Key by_rival
    Buffer deferred             # events of the subtree, as the kernel gave them
    # Of a node that something was moved onto; cookie is 0 then. It was overwritten, or is half of an exchange.
    uint32_t parent
    uint32_t parent_serial
    uint64_t origin             # hash of the place where that came from, 0 when not in this tree
    uint32_t claim              # cookie of an event that moved something away from its name: it, or that?
    bint arrived                # it was taken for half of an exchange; rival is what was taken to stay in its place
    uint32_t rival
    uint32_t rival_serial

# Where something was moved from lately: an event that is half of an exchange names the same place again.
cdef struct Origin:
    uint32_t cookie
    const Root *root
    uint64_t place              # hash of the name and its parent

# A node that could not be reached: looked at again when all events that were queued by then have been handled.
cdef struct Retry:
    uint32_t node
    uint32_t serial
    Item due
    unsigned char attempt       # which attempt that was

# The walker looks at the place of a node: what it finds there is for the reader to take over when that has come to the
# same point in time.
cdef struct Look:
    uint32_t node
    uint32_t serial
    uint32_t parent             # in which it was looked for
    uint32_t parent_serial
    uint64_t name               # hash of the name and its parent
    uint32_t mark               # before it events do not bear on the look
    bint still                  # no event since then has named what stands here
    uint64_t fence              # 0: not yet placed
    int wd                      # of the directory that is there, watched by now; 0 when there is none
    Buffer held                 # what it has told since it is watched
    Identity found              # which one that is
    bint proven                 # it is there, but the tree has it at another place, where it is to be looked for
    bint initial                # the walk that found it goes on with it itself
    Look *next

cdef struct NoticeEntry:
    int kind
    int subscription
    int error
    long number
    char *path
    NoticeEntry *next

cdef enum:
    NOTICE_OVERFLOW = 0
    NOTICE_LIMIT = 1
    NOTICE_DEPTH = 2
    NOTICE_BEYOND = 3
    NOTICE_MOUNTS = 4
    NOTICE_UNGUARDED = 5
    NOTICE_FOREIGN = 6
    NOTICE_SHARE = 7
    NOTICE_WATCHED = 8
    NOTICE_ROOT = 9
    DEPTH_MAX = 8192            # directories below a subject path; deeper ones are not watched

cdef enum:
    ORIGINS = 256
    LIMBO_WAITS = 2             # how long is waited, by whether a directory is watched
    RETRY_WAITS = 17            # how long is waited, by how many attempts were made
    GONE = 1024                 # watch descriptors that went last

# One walker. Made and freed by its thread in the daemon's own process.
cdef struct Worker:
    Core *core
    int64_t begun_ns            # when its piece of work began, by the monotonic clock; 0: it has none
    Root *root                  # of that
    bint hung                   # and another walker has taken over
    bint repairs                # that counts in Core.repairing
    Worker *next

cdef struct Core:
    int inotify_fd
    long queue_length           # events that the kernel keeps for the instance; 0: not known
    int queue_error             # errno that kept the queue from being longer, negative: the sysctl was not put back
    int fence_fds[2]            # memfds of our own: what is done to the one in use marks a place in the kernel's queue
    int fence_at                # which one is in use
    int fence_wd                # its watch, -1 when there is none
    int pace                    # looks, listings or removals in a row whose events do not fill the queue
    uint64_t fence_placed       # number of the last mark put into the queue
    uint64_t fence_first        # number of the first mark since some were lost
    uint64_t fence_passed       # number of the last mark that the reader came by
    uint64_t event_passed       # that number when the event at hand came
    uint64_t fence_sweep        # when those that have passed are to be forgotten
    int reading                 # the reader may have a batch at hand
    int way                     # into containers, see entering.pxd
    int shared                  # threads that walk could not get a working directory of their own
    pthread_mutex_t data        # guards everything below
    pthread_mutex_t next        # taken before data by everybody, so that the reader's turn comes
    pthread_mutex_t low         # taken before next by everybody but the reader
    pthread_cond_t work         # for the walker, with data
    int stopping
    uint64_t key[2]             # secret of the name hash: names come from attackers

    Node *nodes
    uint32_t node_capacity
    uint32_t node_end           # indexes from here on were never used
    uint32_t node_free          # first of a list through next_sibling
    uint32_t node_count
    uint32_t *names             # open addressing: node indexes by (parent, name)
    uint32_t names_capacity
    uint32_t names_count
    uint32_t generation         # changes whenever a path may have changed

    WdEntry *wds
    uint32_t wds_capacity
    uint32_t wds_count
    uint32_t noisy              # watches with IN_OPEN, IN_ACCESS or IN_CLOSE_NOWRITE
    unsigned long long gone     # how many watches went so far, and which ones last
    int gone_wds[GONE]
    int *removals               # watch descriptors that nobody uses any more
    uint32_t removal_count
    uint32_t removal_capacity

    Worker *workers             # all walkers
    uint32_t worker_count
    bint unattended             # nobody looks after the walkers until one begins a piece of work
    pthread_cond_t begun        # then, or when one has ended; with data
    Place *ready_first          # containers with jobs, in turn
    Place *ready_last
    uint32_t job_count          # of all, those put aside included
    int working                 # jobs and first walks that are being carried out
    uint32_t turn               # of the walker: nothing that it does keeps it from the rest

    RootList roots              # look-ups to be done
    RootList roots_aside
    Root *unsettled             # looked up, and to be judged when the mark behind the look-up comes
    Anchor **anchors            # ANCHOR_BUCKETS lists by watch descriptor
    Queue swaps                 # for the walker
    Queue swaps_aside
    Queue swaps_due             # listed, to be reported
    Index swaps_by_node         # those for the walker
    bint unmarked               # an overflow has come, and no node was marked for its sake yet
    bint marking                # a walker is about it
    int repairing               # roots whose trees are still to be brought up to date after an overflow
    bint repair                 # an overflow is being repaired
    int64_t repaired_ns         # since when no root is left to be, by the monotonic clock
    int64_t repair_since_ns     # files born before are not new
    uint64_t *recent            # hashes of (watch descriptor, name) that were reported as created since then
    uint32_t recent_count
    uint32_t recent_capacity

    Index windows               # by node
    Queue windows_due
    Queue windows_held          # due, but what their subject path stands for is to be judged first
    uint32_t repair_windows     # those of a repair
    Index echoes                # by watch descriptor
    Queue echoes_open           # two at the most for each thread that walks
    Queue echoes_due
    uint32_t limbo_count
    Queue limbo_waiting[LIMBO_WAITS]
    Queue limbo_due
    Queue limbo_holding
    Index limbo_by_node
    Index limbo_by_cookie
    Index limbo_by_place
    Index limbo_by_claim
    Index limbo_by_rival
    Origin origins[ORIGINS]     # a ring
    uint32_t origin_at
    Queue retries_waiting[RETRY_WAITS]
    Queue retries_due
    uint32_t retry_count
    int64_t retries_swept_ns    # when those for which nothing is to be done were last looked for
    Look *looks                 # a few for each thread that walks, and those that are proven
    NoticeEntry *notices
    NoticeEntry *notice_last
    uint32_t notice_count
    unsigned long long notices_dropped  # since the last one that Python has taken
    unsigned long long forgotten    # times that memory ran out for what was to be done later
    uint32_t starving           # sum of Place.starved_now
    uint32_t starving_roots     # subject paths among them
    int64_t starved_ns          # when they are tried again, by the monotonic clock
    uint32_t watch_share        # watches that one container may have; 0: any number
    int share_percent           # of the user's limit
    int told_fd                 # an eventfd for Python: counts or notices wait
    int told                    # it was written and not yet acknowledged
    bint spilled                # more events had to be held back than are kept: as bad as an overflow
    Subscription *subscriptions
    Place *places

cdef uint32_t NOISY             # IN_OPEN | IN_ACCESS | IN_CLOSE_NOWRITE
cdef uint32_t STRUCTURE         # what a recursive watch needs to know of every directory

cdef void core_lock(Core *core) noexcept nogil
cdef void core_unlock(Core *core) noexcept nogil
cdef void core_lock_first(Core *core) noexcept nogil
cdef void core_unlock_first(Core *core) noexcept nogil
cdef int core_init(Core *core, int sysctl_fd, long queued_events) noexcept nogil
cdef int64_t monotonic_ns() noexcept nogil
cdef uint64_t fence_place(Core *core) noexcept nogil
cdef uint64_t fence_if_needed(Core *core) noexcept nogil
cdef void fence_reset(Core *core) noexcept nogil
cdef void fence_pass(Core *core) noexcept nogil
cdef uint64_t name_hash(Core *core, uint32_t parent, const char *name, size_t size) noexcept nogil
cdef WdEntry *wd_find(Core *core, int wd) noexcept nogil
cdef WdEntry *wd_attach(Core *core, int wd, uint32_t mask, uint32_t node) noexcept nogil
cdef bint has_place(Core *core, uint32_t first, const Root *root) noexcept nogil
cdef void wd_detach(Core *core, uint32_t node) noexcept nogil
cdef void wd_release(Core *core, int wd) noexcept nogil
cdef void wd_unused(Core *core, int wd) noexcept nogil
cdef void wd_gone(Core *core, int wd) noexcept nogil
cdef bint wd_stands(Core *core, int wd, unsigned long long since) noexcept nogil
cdef void wd_stray(Core *core, int wd, uint32_t mask) noexcept nogil
cdef void wd_forget(Core *core, int wd) noexcept nogil

# Tables of wds and names are rings of any size, which grow by a quarter: of one that doubles half is empty at times.

cdef inline uint32_t place_in(uint32_t capacity, uint32_t hashed) noexcept nogil:
    return <uint32_t>(<uint64_t>hashed * capacity >> 32)

cdef inline uint32_t place_after(uint32_t capacity, uint32_t at) noexcept nogil:
    return at + 1 if at + 1 < capacity else 0

cdef inline uint32_t places_between(uint32_t capacity, uint32_t first, uint32_t last) noexcept nogil:
    return last - first if last >= first else last + (capacity - first)

cdef inline uint32_t place_more(uint32_t capacity) noexcept nogil:
    return capacity + capacity // 4
