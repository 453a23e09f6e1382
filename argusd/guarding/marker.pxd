# The thread that marks: it shares the descriptors of a group with the responder, and nobody else does.

from argusd.guarding.table cimport Group, order_body

cdef int marker_begin(Group *group) noexcept nogil
cdef int order(Group *group, order_body body, int fd) noexcept nogil
