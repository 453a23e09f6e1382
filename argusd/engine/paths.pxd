# What events mean for subject paths.

from argusd.engine.core cimport Core, Root
from argusd.engine.report cimport Reader
from argusd.includes.linux cimport inotify_event

cdef void anchored(Reader *reader, const inotify_event *event, size_t size) noexcept nogil
cdef void forget_held(Root *root) noexcept nogil
cdef void judge(Reader *reader, Root *root) noexcept nogil
