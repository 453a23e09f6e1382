# cython: language_level=3, boundscheck=False, wraparound=False
"""What the answer to one event is: deny beats allow, and what is not guarded is allowed.

A file can be guarded itself, as a child of a directory, or by its name in one. The name by which it was opened is
asked for only where the answer depends on it: not when the file itself is denied, nor when no child of any directory
is. What cannot be found out, since the process sees the directory where we cannot look it up without waiting, is denied
if it may be something that is denied.
"""

from libc.stdint cimport uint64_t
from libc.string cimport memcmp

from argusd.guarding.asking cimport PARENT_KNOWN, PARENT_UNKNOWN, ask_parent
from argusd.guarding.parents cimport ask_parent_pid
from argusd.guarding.table cimport BUCKETS, FOLDER, ITSELF, NAME, inode_bucket


cdef bint concerns(const Asked *asked, const Entry *entry) noexcept nogil:
    return entry.subject.on and entry.bits & asked.bit


cdef bint denies(Group *group, Asked *asked, const Entry *entry) noexcept nogil:
    cdef int init = entry.subject.init
    if not entry.deny or not entry.subject.owner_allowed:
        return entry.deny
    return asked.pid != init and ask_parent_pid(group, asked) != init


cdef bint same_birth(uint64_t one, uint64_t other) noexcept nogil:
    return one == other or one == 0 or other == 0


cdef bint is_self(const Asked *asked, const Entry *entry) noexcept nogil:
    return (entry.kind != NAME and entry.inode == asked.inode and entry.device == asked.device
            and same_birth(entry.born, asked.born))


cdef bint fits(const Asked *asked, const Entry *entry) noexcept nogil:
    return entry.kind == FOLDER or (entry.kind == NAME and entry.name_size == asked.name_size
                                    and memcmp(entry.name, asked.name, asked.name_size) == 0)


cdef bint is_child_of(const Asked *asked, const Entry *entry) noexcept nogil:
    return (entry.inode == asked.parent_inode and entry.device == asked.parent_device
            and same_birth(entry.born, asked.parent_born) and fits(asked, entry))


cdef bint may_be_child_of(const Asked *asked, const Entry *entry) noexcept nogil:
    """With the directory unknown. The name on which something is mounted says nothing of its own."""
    if entry.kind == ITSELF or (entry.kind == NAME and asked.mounted):
        return False
    if asked.name != NULL and not fits(asked, entry):
        return False
    return entry.device == asked.device or entry.layered


cdef bint weigh(Group *group, Asked *asked, const Entry *entry) noexcept nogil:
    """Take in an entry that concerns the event; True when nothing else matters any more."""
    asked.denied = asked.denied or denies(group, asked, entry)
    asked.audit = asked.audit or entry.subject.audit
    return asked.denied and group.audited == 0


cdef void weigh_any(Group *group, Asked *asked) noexcept nogil:
    """Take in whatever the file may be a child of."""
    cdef const Entry *entry
    cdef int i
    for i in range(BUCKETS):
        entry = group.by_inode[i]
        while entry != NULL:
            if may_be_child_of(asked, entry) and concerns(asked, entry) and weigh(group, asked, entry):
                return
            entry = entry.next_by_inode


cdef void decide(Group *group, Asked *asked) noexcept nogil:
    """Set whether the process is to be refused, and whether that is to be audited."""
    cdef const Entry *entry = group.by_inode[inode_bucket(asked.device, asked.inode)]
    while entry != NULL:
        if is_self(asked, entry) and concerns(asked, entry) and weigh(group, asked, entry):
            return
        entry = entry.next_by_inode
    if group.audited == 0 and group.denying[asked.event] == 0:
        return
    ask_parent(group, asked)
    if asked.parent == PARENT_UNKNOWN:
        weigh_any(group, asked)
    if asked.parent != PARENT_KNOWN:
        return
    entry = group.by_inode[inode_bucket(asked.parent_device, asked.parent_inode)]
    while entry != NULL:
        if is_child_of(asked, entry) and concerns(asked, entry) and weigh(group, asked, entry):
            return
        entry = entry.next_by_inode
