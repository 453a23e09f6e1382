# Who is the parent of the process that asks.

from argusd.guarding.asking cimport Asked
from argusd.guarding.table cimport Group

cdef int stat_parent(const char *text, size_t size) noexcept nogil
cdef int ask_parent_pid(Group *group, Asked *asked) noexcept nogil
cdef void parents_forget(Group *group) noexcept nogil
