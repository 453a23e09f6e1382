# Listing a directory.

from libc.stdint cimport uint32_t

from argusd.engine.core cimport Core
from argusd.engine.walk cimport Walk

cdef void listing_begin(Walk *walk, uint32_t node, uint32_t serial, int wd, int parent_wd,
                        const char *name) noexcept nogil
cdef void expect_echoes(Walk *walk, int wd, int parent_wd, const char *name) noexcept nogil
cdef void list_directory(Walk *walk, uint32_t node, uint32_t serial, int fd, int wd) noexcept nogil
cdef void list_readable(Walk *walk, uint32_t node, uint32_t serial, int fd, int wd) noexcept nogil
cdef void listing_done(Walk *walk, uint32_t node, uint32_t serial, int reads, int error) noexcept nogil
