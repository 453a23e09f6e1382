# The thread that turns answers into lines.

from argusd._output cimport SINKS_MAX, Sink
from argusd.guarding.table cimport Group

cdef enum:
    GROUPS = 2                      # for local and for remote file systems

cdef struct Reporter:
    void *groups[GROUPS]            # Group; NULL for one that is not made yet
    int waits                       # the thread sleeps
    int fd                          # an eventfd to wake it
    int stopping
    int sink_count
    Sink *sinks[SINKS_MAX]
    void *ended                     # Subject: their encoders are of no use any more
    unsigned long long lines

cdef void *reporter_main(void *argument) noexcept nogil
cdef bint reporter_idle(Reporter *reporter) noexcept nogil
