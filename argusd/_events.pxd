# From kernel events to lines and counts: the reader.

from argusd._report cimport Reader
from argusd._tree cimport Core

cdef bint reader_init(Reader *reader, Core *core) noexcept nogil
cdef void reader_free(Reader *reader) noexcept nogil
cdef void *reader_main(void *argument) noexcept nogil
