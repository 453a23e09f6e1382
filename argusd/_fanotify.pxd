# The face of the guards, for the engine.

from libc.stdint cimport uint32_t

from argusd._output cimport Output
from argusd._records cimport Encoder
from argusd.guarding.groups cimport Gate
from argusd.guarding.guards cimport Guard

cdef class Guards:
    cdef Gate gate
    cdef Output output              # kept: the reporter writes to its sinks
    cdef dict encoders              # number of the guard -> Encoder, for as long as a line may be made
    cdef dict ending                # number of the guard -> in how many groups it is still to be seen off
    cdef unsigned long long told_dropped, told_failed
    cdef int told_broken
    cdef bint closed

    cdef Guard *guard(self, int number, Encoder encoder, int init, bint owner_allowed, uint32_t bits,
                      bint audit) except NULL
    cdef void end(self, Guard *guard) noexcept
    cdef void forget(self) noexcept

cdef object guard_error(int step, int error, path)
