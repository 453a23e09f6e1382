# Allow or deny.

from argusd.guarding.asking cimport Asked
from argusd.guarding.table cimport Entry, Group

cdef void decide(Group *group, Asked *asked) noexcept nogil
cdef bint concerns(const Asked *asked, const Entry *entry) noexcept nogil
cdef bint is_child_of(const Asked *asked, const Entry *entry) noexcept nogil
cdef bint may_be_child_of(const Asked *asked, const Entry *entry) noexcept nogil
cdef bint is_self(const Asked *asked, const Entry *entry) noexcept nogil
