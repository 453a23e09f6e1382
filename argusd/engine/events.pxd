# The reader thread.

from argusd.engine.core cimport Core
from argusd.engine.report cimport Reader

cdef void *reader_main(void *argument) noexcept nogil
cdef bint reader_init(Reader *reader, Core *core) noexcept nogil
cdef void reader_free(Reader *reader) noexcept nogil
