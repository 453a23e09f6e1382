# Permission groups and the threads that serve them.

from argusd.guarding.reporter cimport Reporter
from argusd.guarding.table cimport Group
from argusd.includes.pthread cimport pthread_mutex_t, pthread_t

cdef enum:
    LOCAL = 0                       # numbers of groups
    REMOTE = 1

# All of them together.
cdef struct Gate:
    Reporter reporter
    pthread_t reporter_thread
    pthread_mutex_t lock            # guards what is below, and whether a guard is on
    bint closed
    bint ended                      # all threads have; only then their memory may be freed

cdef Group *group_for(Gate *gate, int number, int *error) noexcept nogil
cdef int gate_init(Gate *gate) noexcept nogil
cdef int gate_open(Gate *gate, int *no_audit) noexcept nogil
cdef void gate_close(Gate *gate, int timeout_ms) noexcept nogil
cdef void gate_free(Gate *gate) noexcept nogil
