# cython: language_level=3, boundscheck=False, wraparound=False
"""Judging by its mount whether a file may be guarded. No file system is asked: its server might never answer.

Two kinds of mounts are refused.

A file system that a user serves (FUSE). The kernel opens a guarded file once more for the responder. A thread that
waits for a FUSE server cannot even be killed, so that the daemon could neither end nor let go of those who wait for it.
Such a file system can be hidden below an overlay. The overlay of a container's root was made by its runtime, and its
layers are looked up among the node's mounts (lazily pulled images lie on FUSE). Any other overlay was made by whoever
could mount, and so was that of a root which the node does not have mounted, in a mount namespace that belongs to
another user namespace.

A read-only view of the node's files (a host path volume, for instance). A container that points a guarded path there by
a symbolic link would have the node refused its own files. So it is guarded only when the path itself leads below that
mount, which is what the request asked for. What cannot be told from the node's files by this: relative layers of an
overlay (podman, and containerd for images of many layers) are not looked up.
"""

from libc.errno cimport EAGAIN, EOPNOTSUPP, EXDEV
from libc.stdio cimport snprintf
from libc.stdlib cimport strtoull
from libc.string cimport memchr, memcpy, memset, strlen, strstr

from argusd._records cimport Buffer, buffer_free, buffer_room
from argusd.guarding.mountinfo cimport (
    Mount,
    Piece,
    mount_find,
    mount_has_device,
    mount_next,
    path_covers,
    piece_begins,
    piece_is,
    piece_option,
    piece_plain,
)
from argusd.includes.fanotify cimport NS_GET_USERNS, STATX_MNT_ID, mount_of
from argusd.includes.linux cimport (
    AT_EMPTY_PATH,
    AT_STATX_DONT_SYNC,
    O_CLOEXEC,
    O_RDONLY,
    close,
    fstat,
    ioctl,
    open,
    read,
    readlink,
    stat_t,
    statx,
    statx_t,
)


cdef enum:
    PATH_SIZE = 4096
    LISTED_MAX = 16 * 1024 * 1024   # bytes of the node's mountinfo that are looked at


# File systems that answer for themselves; of every other one a server may keep an open waiting.
cdef const char **LOCAL_TYPES = [
    b"overlay", b"ext4", b"xfs", b"btrfs", b"tmpfs", b"ramfs", b"devtmpfs", b"ext3", b"ext2", b"f2fs", b"zfs",
    b"bcachefs", b"squashfs", b"erofs", b"vfat", b"exfat", b"ntfs3", b"iso9660", b"udf", b"hugetlbfs", b"mqueue",
    b"devpts", b"proc", b"sysfs", b"cgroup", b"cgroup2", NULL,
]


cdef bint is_local(const Piece *kind) noexcept nogil:
    cdef int i = 0
    while LOCAL_TYPES[i] != NULL and not piece_is(kind, LOCAL_TYPES[i]):
        i += 1
    return LOCAL_TYPES[i] != NULL


cdef bint is_served_by_a_user(const Piece *kind) noexcept nogil:
    return (piece_is(kind, b"fuse") or piece_begins(kind, b"fuse.") or piece_begins(kind, b"fuseblk")
            or piece_is(kind, b"virtiofs"))


cdef uint64_t mount_number(int fd) noexcept nogil:
    """The number of the mount through which it was found, 0 when it cannot be told."""
    cdef statx_t status
    cdef char text[512]
    cdef const char *told
    cdef ssize_t size
    cdef int info
    if (statx(fd, b"", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_MNT_ID, &status) == 0
            and status.stx_mask & STATX_MNT_ID):
        return mount_of(&status)
    snprintf(text, sizeof(text), b"/proc/self/fdinfo/%d", fd)       # before Linux 5.8
    info = open(text, O_RDONLY | O_CLOEXEC)
    if info < 0:
        return 0
    size = read(info, text, sizeof(text) - 1)
    close(info)
    text[max(<ssize_t>0, size)] = 0
    told = strstr(text, b"mnt_id:")
    return strtoull(told + strlen(b"mnt_id:"), NULL, 10) if told != NULL else 0


cdef void read_node(Buffer *node) noexcept nogil:
    """The mounts of the node, empty when they cannot be read. To be freed by the caller."""
    cdef ssize_t size = 1
    cdef int fd = open(b"/proc/1/mountinfo", O_RDONLY | O_CLOEXEC)
    memset(node, 0, sizeof(Buffer))
    while fd >= 0 and size > 0 and node.size < LISTED_MAX and buffer_room(node, 65536):
        size = read(fd, node.data + node.size, 65536)
        if size > 0:
            node.size += <size_t>size
    if fd >= 0:
        close(fd)


cdef bint is_of_our_users(int pid) noexcept nogil:
    """True if the process' mount namespace belongs to our user namespace, that is to no ordinary user."""
    cdef char path[40]
    cdef stat_t owner, ours
    cdef int space, users
    cdef bint same = False
    snprintf(path, sizeof(path), b"/proc/%d/ns/mnt", pid)
    space = open(path, O_RDONLY | O_CLOEXEC)
    if space < 0:
        return False
    users = ioctl(space, NS_GET_USERNS)
    close(space)
    if users < 0:
        return False
    space = open(b"/proc/self/ns/user", O_RDONLY | O_CLOEXEC)
    if space >= 0:
        same = (fstat(users, &owner) == 0 and fstat(space, &ours) == 0
                and owner.st_dev == ours.st_dev and owner.st_ino == ours.st_ino)
        close(space)
    close(users)
    return same

# ---- the root's overlay


cdef bint mount_above(const Buffer *node, const char *path, size_t size, Mount *above) noexcept nogil:
    """The mount of the node on which a path of the node is."""
    cdef char point[PATH_SIZE]
    cdef Mount mount
    cdef size_t at = 0, length, longest = 0
    while mount_next(node.data, node.size, &at, &mount):
        length = piece_plain(&mount.point, point, sizeof(point))
        if length >= longest and length and path_covers(point, length, path, size):
            longest = length
            above[0] = mount
    return longest > 0


cdef int vet_layer(const Buffer *node, const Piece *layer, bint *remote) noexcept nogil:
    """0, or an errno if a layer lies on a file system that a user serves."""
    cdef char path[PATH_SIZE]
    cdef size_t size = piece_plain(layer, path, sizeof(path))
    cdef Mount mount
    if size == 0 or path[0] != c'/' or not mount_above(node, path, size, &mount):
        return 0
    remote[0] = remote[0] or not is_local(&mount.kind)
    return EOPNOTSUPP if is_served_by_a_user(&mount.kind) else 0


cdef int vet_layers(const Buffer *node, Piece layers, bint *remote) noexcept nogil:
    """Likewise, of layers with colons between them."""
    cdef const char *colon
    cdef Piece layer
    cdef int error = 0
    while layers.size and not error:
        colon = <const char *>memchr(layers.text, c':', layers.size)
        layer.text = layers.text
        layer.size = <size_t>(colon - layers.text) if colon != NULL else layers.size
        error = vet_layer(node, &layer, remote)
        layers.text += layer.size
        layers.size -= layer.size
        if layers.size:
            layers.text += 1
            layers.size -= 1
    return error


cdef int vet_overlay(const Mount *root, int init, bint *remote) noexcept nogil:
    """Judge the overlay of a container's root; 0 or an errno."""
    cdef Buffer node
    cdef Piece options = root.layers
    cdef Piece option
    cdef const char *value
    cdef int error = 0
    read_node(&node)
    while not error and piece_option(&options, &option):
        value = <const char *>memchr(option.text, c'=', option.size)
        if value != NULL and (piece_begins(&option, b"lowerdir") or piece_begins(&option, b"upperdir=")
                              or piece_begins(&option, b"datadir")):
            option.size -= <size_t>(value + 1 - option.text)
            option.text = value + 1
            error = vet_layers(&node, option, remote)
    if not error and not mount_has_device(node.data, node.size, root.device) and not is_of_our_users(init):
        error = EOPNOTSUPP
    buffer_free(&node)
    return error

# ---- a look-up


cdef bint vetting_lists(int root_fd, const char *text, size_t size) noexcept nogil:
    """True if the mount of a container's root is listed."""
    cdef Mount root
    return mount_find(text, size, mount_number(root_fd), &root)


cdef void find_place(Vetting *vetting, int root_fd, bint above) noexcept nogil:
    """Find out where in the listing the container's root is."""
    cdef char link[40]
    cdef ssize_t size = 0
    if above:
        snprintf(link, sizeof(link), b"/proc/self/fd/%d", root_fd)
        size = readlink(link, vetting.place, sizeof(vetting.place) - 1)
    vetting.place[size if size > 1 else 0] = 0


cdef void vetting_begin(Vetting *vetting, int root_fd, const char *text, size_t size, bint above) noexcept nogil:
    """A look-up begins in the container whose root that is; the first one judges the root that its runtime has made.

    ``above``: the text is that of the whole namespace.
    """
    cdef Mount root
    cdef uint64_t number = mount_number(root_fd)
    if text == NULL or not mount_find(text, size, number, &root):
        vetting.text = NULL
        return
    vetting.text, vetting.size = text, size
    find_place(vetting, root_fd, above)
    if vetting.root_mount:
        return
    vetting.root_mount = number
    if piece_is(&root.kind, b"overlay"):
        vetting.root_error = vet_overlay(&root, vetting.init, &vetting.root_remote)


cdef size_t join(char *path, size_t size, const char *more, size_t more_size) noexcept nogil:
    """Put a path that begins with a slash behind another one; the size of both, 0 where there is no room."""
    if size == 1:
        size = 0                    # the slash of "/"
    if size + more_size >= PATH_SIZE:
        return 0
    memcpy(path + size, more, more_size)
    return size + more_size


cdef bint is_below_root(const Vetting *vetting, const Mount *mount) noexcept nogil:
    """True if a mount shows what the container's root shows, too."""
    cdef char above[PATH_SIZE]
    cdef char path[PATH_SIZE]
    cdef Mount root
    cdef size_t size, point
    if not mount_find(vetting.text, vetting.size, vetting.root_mount, &root) or root.device != mount.device:
        return False
    point = piece_plain(&root.point, path, sizeof(path))
    if point == 1:
        point = 0
    size = piece_plain(&root.root, above, sizeof(above))
    if strlen(vetting.place) > point:
        size = join(above, size, vetting.place + point, strlen(vetting.place) - point)
    return size > 0 and path_covers(above, size, path, piece_plain(&mount.root, path, sizeof(path)))


cdef bint is_named(const Vetting *vetting, const Mount *mount, const char *path) noexcept nogil:
    """True if a path of the container leads to the mount by its names alone."""
    cdef char point[PATH_SIZE]
    cdef char full[PATH_SIZE]
    cdef size_t size = strlen(vetting.place), point_size = piece_plain(&mount.point, point, sizeof(point))
    memcpy(full, vetting.place, size)
    size = join(full, size, path, strlen(path))
    return size > 0 and point_size > 0 and path_covers(point, point_size, full, size)


cdef bint is_of_the_node(const Vetting *vetting, const Mount *mount, const char *path) noexcept nogil:
    """True for a read-only view of the node's files, unless the path itself leads below that mount."""
    cdef Buffer node
    cdef bint shared
    if not mount.read_only or is_below_root(vetting, mount) or is_named(vetting, mount, path):
        return False
    read_node(&node)
    shared = mount_has_device(node.data, node.size, mount.device)
    buffer_free(&node)
    return shared


cdef int vet(const Vetting *vetting, int fd, const char *path, Verdict *verdict) noexcept nogil:
    """Judge what is behind an O_PATH descriptor, to be told of as ``path``.

    0 or an errno: EOPNOTSUPP where it cannot be guarded, EXDEV where it is the node's, EAGAIN where nothing tells.
    """
    cdef Mount mount
    cdef uint64_t number = mount_number(fd)
    if vetting.text == NULL or not mount_find(vetting.text, vetting.size, number, &mount):
        return EAGAIN               # it was unmounted meanwhile
    verdict.remote = not is_local(&mount.kind)
    verdict.layered = piece_is(&mount.kind, b"overlay") or piece_is(&mount.kind, b"btrfs")
    if is_served_by_a_user(&mount.kind):
        return EOPNOTSUPP
    if number == vetting.root_mount:
        verdict.remote = verdict.remote or vetting.root_remote
        return vetting.root_error
    if piece_is(&mount.kind, b"overlay"):
        return EOPNOTSUPP
    return EXDEV if is_of_the_node(vetting, &mount, path) else 0
