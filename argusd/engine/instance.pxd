# The inotify instance, and the length of its queue.

cdef int instance_make(int sysctl_fd, long wanted, long *length, int *error) noexcept nogil
