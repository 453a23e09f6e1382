# cython: language_level=3, boundscheck=False, wraparound=False
"""Trees of directories: one for each subject path, kept by what events and listings tell.

Nothing here looks at a file system. Nodes are named by index, because the arena moves when it grows; the memory of a
directory is one node, its name, and its places in two hash tables.
"""

from libc.stdint cimport int32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset, strlen

from argusd._records cimport buffer_add, buffer_room
from argusd.engine.core cimport (
    NODE_INDEXED,
    NODE_MOVED,
    NODE_ORPHAN,
    NODE_UNLISTED,
    NODE_WINDOW,
    WdEntry,
    Window,
    name_hash,
    place_after,
    place_in,
    place_more,
    places_between,
    wd_detach,
    wd_find,
)
from argusd.engine.window cimport window_drop, window_find, window_free


cdef enum:
    NAME_LONGEST = 255              # bytes of a name (NAME_MAX)
    PATH_LONGEST = 4095             # bytes of a path that the kernel takes (PATH_MAX without the zero byte)
    PATH_BEGIN = 1024               # bytes that are kept of the beginning of a longer one
    PATH_FIRST = 512                # and so many names that can be: each has one byte at the least, and a slash
    PATH_END = 2048                 # bytes that are kept of its end


cdef inline uint32_t name_home(Core *core, uint32_t parent, const char *name, size_t size) noexcept nogil:
    return place_in(core.names_capacity, <uint32_t>name_hash(core, parent, name, size))


cdef inline uint32_t node_home(Core *core, uint32_t node) noexcept nogil:
    return name_home(core, core.nodes[node].parent, core.nodes[node].name, core.nodes[node].name_size)


cdef bint names_grow(Core *core) noexcept nogil:
    cdef uint32_t *old = core.names
    cdef uint32_t old_capacity = core.names_capacity, i, at
    core.names_capacity = place_more(old_capacity)
    core.names = <uint32_t *>calloc(core.names_capacity, sizeof(uint32_t))
    if core.names == NULL:
        core.names, core.names_capacity = old, old_capacity
        return False
    for i in range(old_capacity):
        if old[i]:
            at = node_home(core, old[i])
            while core.names[at]:
                at = place_after(core.names_capacity, at)
            core.names[at] = old[i]
    free(old)
    return True


cdef bint node_index(Core *core, uint32_t node) noexcept nogil:
    cdef uint32_t at
    if <uint64_t>(core.names_count + 1) * 4 > <uint64_t>core.names_capacity * 3 and not names_grow(core):
        return False
    at = node_home(core, node)
    while core.names[at]:
        at = place_after(core.names_capacity, at)
    core.names[at] = node
    core.names_count += 1
    core.nodes[node].flags |= NODE_INDEXED
    return True


cdef void node_unindex(Core *core, uint32_t node) noexcept nogil:
    cdef uint32_t capacity = core.names_capacity
    cdef uint32_t at, follow, home
    if not core.nodes[node].flags & NODE_INDEXED:
        return
    core.nodes[node].flags &= <unsigned short>~NODE_INDEXED
    core.names_count -= 1
    at = node_home(core, node)
    while core.names[at] != node:
        at = place_after(capacity, at)
    follow = at
    while True:                 # close the gap, so that no tombstones are needed
        core.names[at] = 0
        while True:
            follow = place_after(capacity, follow)
            if core.names[follow] == 0:
                return
            home = node_home(core, core.names[follow])
            if places_between(capacity, home, follow) >= places_between(capacity, at, follow):
                break
        core.names[at] = core.names[follow]
        at = follow


cdef uint32_t node_find(Core *core, uint32_t parent, const char *name, size_t size) noexcept nogil:
    cdef uint32_t at = name_home(core, parent, name, size)
    cdef uint32_t node
    while core.names[at]:
        node = core.names[at]
        if (core.nodes[node].parent == parent and core.nodes[node].name_size == size
                and memcmp(core.nodes[node].name, name, size) == 0):
            return node
        at = place_after(core.names_capacity, at)
    return 0


cdef void node_link(Core *core, uint32_t node, uint32_t parent) noexcept nogil:
    cdef uint32_t first
    core.nodes[node].parent = parent
    core.nodes[node].prev_sibling = 0
    core.nodes[node].next_sibling = 0
    if parent:
        first = core.nodes[parent].first_child
        core.nodes[node].next_sibling = first
        if first:
            core.nodes[first].prev_sibling = node
        core.nodes[parent].first_child = node


cdef void node_unlink(Core *core, uint32_t node) noexcept nogil:
    cdef Node *it = &core.nodes[node]
    if it.prev_sibling:
        core.nodes[it.prev_sibling].next_sibling = it.next_sibling
    elif it.parent:
        core.nodes[it.parent].first_child = it.next_sibling
    if it.next_sibling:
        core.nodes[it.next_sibling].prev_sibling = it.prev_sibling


cdef bint set_name(Node *node, const char *name, size_t size) noexcept nogil:
    cdef char *copy = <char *>malloc(size + 1)
    if copy == NULL:
        return False
    memcpy(copy, name, size)
    copy[size] = 0
    free(node.name)
    node.name = copy
    node.name_size = <unsigned char>size
    return True


cdef uint32_t node_new(Core *core, uint32_t parent, Root *root, const char *name, size_t size) noexcept nogil:
    """A new node below ``parent``, or a top without a name when that is 0. Returns 0 when memory ran out."""
    cdef uint32_t node = core.node_free, serial
    cdef Node *grown
    if node:
        core.node_free = core.nodes[node].next_sibling
    else:
        if core.node_end == core.node_capacity:
            grown = <Node *>realloc(core.nodes, <size_t>core.node_capacity * 2 * sizeof(Node))
            if grown == NULL:
                return 0
            core.nodes = grown
            core.node_capacity *= 2
        node = core.node_end
        core.node_end += 1
        core.nodes[node].serial = 0
    serial = core.nodes[node].serial + 1
    memset(&core.nodes[node], 0, sizeof(Node))
    core.nodes[node].serial = serial
    core.nodes[node].wd = -1
    core.nodes[node].root = root
    core.node_count += 1
    node_link(core, node, parent)
    if parent and not (set_name(&core.nodes[node], name, size) and node_index(core, node)):
        node_free_tree(core, node)
        return 0
    return node


cdef bint node_is(Core *core, uint32_t node, uint32_t serial) noexcept nogil:
    return core.nodes[node].serial == serial and core.nodes[node].root != NULL


cdef bint is_ahead(const Core *core, uint32_t mark) noexcept nogil:
    """Has the event at hand come before this mark?"""
    return mark != 0 and <int32_t>(mark - <uint32_t>core.event_passed) > 0


cdef bint is_older(Core *core, uint32_t node) noexcept nogil:
    """Is the event at hand from before the node's watch stood? Then it is about something else under that name."""
    return core.nodes[node].parent == 0 and is_ahead(core, core.nodes[node].mark)


cdef bint is_known(Core *core, uint32_t node) noexcept nogil:
    """Does the tree have every subdirectory that this one had when the event at hand came?"""
    return not core.nodes[node].flags & NODE_UNLISTED and not is_ahead(core, core.nodes[node].listed)


cdef uint32_t other_place(Core *core, uint32_t node, int wd) noexcept nogil:
    """Another node of the same tree that holds this watch descriptor, or 0."""
    cdef WdEntry *entry = wd_find(core, wd)
    cdef uint32_t other = entry.first if entry != NULL else 0
    while other and (other == node or core.nodes[other].root != core.nodes[node].root):
        other = core.nodes[other].next_on_wd
    return other


cdef void node_move(Core *core, uint32_t node, uint32_t parent, const char *name, size_t size) noexcept nogil:
    """Give a node, with all that is below it, another place and name."""
    node_unindex(core, node)
    node_unlink(core, node)
    node_link(core, node, parent)
    core.nodes[node].flags |= NODE_MOVED
    core.generation += 1
    if not (set_name(&core.nodes[node], name, size) and node_index(core, node)):
        node_free_tree(core, node)


cdef void node_free_one(Core *core, uint32_t node) noexcept nogil:
    cdef Node *it = &core.nodes[node]
    node_unindex(core, node)
    node_unlink(core, node)
    wd_detach(core, node)
    if it.flags & NODE_WINDOW:
        window_drop(core, node)
    if it.root.top == node:
        it.root.top = 0
    if it.root.next_top == node:
        it.root.next_top = 0
    if it.root.departed == node:
        it.root.departed = 0
    free(it.name)
    it.name = NULL
    it.root = NULL              # node_is() says no from here on
    it.flags = 0
    it.next_sibling = core.node_free
    core.node_free = node
    core.node_count -= 1


cdef void node_free_tree(Core *core, uint32_t node) noexcept nogil:
    cdef uint32_t at = node, parent
    core.generation += 1
    while True:
        while core.nodes[at].first_child:
            at = core.nodes[at].first_child
        parent = core.nodes[at].parent
        node_free_one(core, at)
        if at == node:
            return
        at = parent


cdef void node_replace(Core *core, uint32_t place, uint32_t node) noexcept nogil:
    """Put ``node``, which is not above ``place``, where that is, which goes with all that is still below it."""
    cdef char name[256]
    cdef size_t size = core.nodes[place].name_size
    memcpy(name, core.nodes[place].name, size + 1)
    node_move(core, node, core.nodes[place].parent, name, size)     # first: it may come from below
    node_free_tree(core, place)


cdef void node_free_below(Core *core, uint32_t node) noexcept nogil:
    while core.nodes[node].first_child:
        node_free_tree(core, core.nodes[node].first_child)


cdef uint32_t node_next(Core *core, uint32_t top, uint32_t node) noexcept nogil:
    """The node after ``node`` in a walk, parents first, through the tree below ``top``; 0 at the end."""
    if core.nodes[node].first_child:
        return core.nodes[node].first_child
    while node != top:
        if core.nodes[node].next_sibling:
            return core.nodes[node].next_sibling
        node = core.nodes[node].parent
    return 0


cdef uint32_t node_depth(Core *core, uint32_t node) noexcept nogil:
    """1 for the subject path itself."""
    cdef uint32_t depth = 0
    while node:
        depth += 1
        node = core.nodes[node].parent
    return depth


cdef bint node_below(Core *core, uint32_t node, uint32_t ancestor) noexcept nogil:
    while node and node != ancestor:
        node = core.nodes[node].parent
    return node != 0


cdef void node_orphan(Core *core, uint32_t node) noexcept nogil:
    """The directory was removed, but its own last events are to come: they are told under the path that it had."""
    cdef Buffer path
    cdef Window *window
    memset(&path, 0, sizeof(path))
    node_path(core, node, &path)
    if not buffer_room(&path, 1):
        return
    path.data[path.size] = 0
    node_unindex(core, node)
    free(core.nodes[node].name)
    core.nodes[node].name = path.data
    core.nodes[node].name_size = 0
    core.nodes[node].flags |= NODE_ORPHAN
    core.generation += 1
    window = window_find(core, node)
    if window != NULL and window.due.queue == NULL:     # nobody lists what has no path
        window_free(core, window)


cdef bint is_base(const Core *core, uint32_t node) noexcept nogil:
    """Is it a top, or a removed directory that keeps its path? Paths are made from there."""
    return core.nodes[node].parent == 0 or core.nodes[node].flags & NODE_ORPHAN


cdef size_t names_from(Core *core, uint32_t node, size_t size, char *end) noexcept nogil:
    """Write the last names of a node's path, each behind a slash, so that they end at ``end``.

    As many as have room in ``size`` bytes, up to the base. Returns how many bytes that were.
    """
    cdef size_t done = 0, more
    while not is_base(core, node):
        more = <size_t>core.nodes[node].name_size + 1
        if done + more > size:
            break
        done += more
        end[-<Py_ssize_t>done] = c'/'
        memcpy(end - done + 1, core.nodes[node].name, more - 1)
        node = core.nodes[node].parent
    return done


cdef uint32_t count_names(const char *path, size_t size) noexcept nogil:
    cdef uint32_t count = 0
    cdef size_t i
    for i in range(size):
        count += path[i] == c'/'
    return count


cdef void path_begin(Core *core, const char *base, size_t size, const uint32_t *first, uint32_t levels,
                     Buffer *out) noexcept nogil:
    """Append the whole names at the beginning of a path that have room in PATH_BEGIN bytes.

    ``first`` has the nodes of the ``levels`` levels below the base, level modulo PATH_FIRST; the deep ones were
    overwritten by those above them.
    """
    cdef size_t begin = out.size
    cdef uint32_t level = levels, node
    if size > PATH_BEGIN:
        size = PATH_BEGIN
        while base[size] != c'/':
            size -= 1
        level = 0                   # nothing below the base
    buffer_add(out, base, size)
    while level > 0:
        level -= 1
        node = first[level % PATH_FIRST]
        if out.size - begin + core.nodes[node].name_size + 1 > PATH_BEGIN:
            return
        buffer_add(out, b"/", 1)
        buffer_add(out, core.nodes[node].name, core.nodes[node].name_size)


cdef void shortened_path(Core *core, uint32_t node, const char *base, size_t base_size, Buffer *out) noexcept nogil:
    """Append the beginning and the end of a path that is longer than any that a program can use.

    Between them stands how many directories are left out. No path has an empty name, so none can be taken for this.
    """
    cdef uint32_t first[PATH_FIRST]
    cdef char last[PATH_END]
    cdef char mark[64]
    cdef uint32_t at = node, levels = 0, left_out
    cdef size_t begin = out.size, size
    while not is_base(core, at):
        first[levels % PATH_FIRST] = at
        levels += 1
        at = core.nodes[at].parent
    size = names_from(core, node, PATH_END, last + PATH_END)
    path_begin(core, base, base_size, first, levels, out)
    if out.failed:
        return
    left_out = levels + count_names(base, base_size)
    left_out -= count_names(out.data + begin, out.size - begin) + count_names(last + PATH_END - size, size)
    buffer_add(out, mark, <size_t>snprintf(mark, sizeof(mark), b"//\xe2\x80\xa6%u directories\xe2\x80\xa6/", left_out))
    buffer_add(out, last + PATH_END - size, size)


cdef void node_path(Core *core, uint32_t node, Buffer *out) noexcept nogil:
    """Append the node's path as the container sees it, not sanitized; shortened when no program could use it.

    It is for people and programs to read, not to look anything up with.
    """
    cdef const Root *root = core.nodes[node].root
    cdef const char *base = root.path
    cdef size_t base_size = root.path_size, size = 0
    cdef uint32_t at = node
    while not is_base(core, at):
        size += <size_t>core.nodes[at].name_size + 1
        at = core.nodes[at].parent
    if core.nodes[at].flags & NODE_ORPHAN:
        base = core.nodes[at].name
        base_size = strlen(base)
    elif base_size == 1 and size:
        base_size = 0           # the names bring their own slashes
    size += base_size
    if size > PATH_LONGEST:
        shortened_path(core, node, base, base_size, out)
    elif buffer_room(out, size):
        memcpy(out.data + out.size, base, base_size)
        out.size += size
        names_from(core, node, size, out.data + out.size)


cdef bint is_ignored(const Subscription *subscription, const char *name, size_t size) noexcept nogil:
    cdef int i
    if size > NAME_LONGEST:                 # some file systems have such names; no path that we keep can
        return True
    for i in range(subscription.ignored_count):
        if strlen(subscription.ignored[i]) == size and memcmp(subscription.ignored[i], name, size) == 0:
            return True
    return False
