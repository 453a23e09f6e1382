# Whether what a path stands for may be guarded, judged by its mount.

from libc.stdint cimport uint64_t

# The mounts of a container, as a look-up sees them.
cdef struct Vetting:
    int init                        # the container's
    uint64_t root_mount             # of its root, when it was first looked up; 0 until then
    int root_error                  # errno that keeps what is on that from being guarded, else 0
    bint root_remote                # a layer of it is on a file system with a server
    const char *text                # mountinfo, as far up as the mount of that root; NULL when it could not be read
    size_t size
    char place[4096]                # the path of the container's root in there, empty when that is listed as "/"

cdef struct Verdict:
    bint remote                     # its server may keep an open waiting
    bint layered                    # files in one directory may have other device numbers than it

cdef uint64_t mount_number(int fd) noexcept nogil
cdef bint vetting_lists(int root_fd, const char *text, size_t size) noexcept nogil
cdef void vetting_begin(Vetting *vetting, int root_fd, const char *text, size_t size, bint above) noexcept nogil
cdef int vet(const Vetting *vetting, int fd, const char *path, Verdict *verdict) noexcept nogil
