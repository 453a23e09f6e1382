# Processes that share the daemon's memory, but neither its descriptors nor its fate.

cdef enum:
    TWIN_KEPT = 8                   # descriptors that a twin may keep

ctypedef void (*twin_body)(Twin *twin, void *argument) noexcept nogil
ctypedef void (*home_body)(void *argument, int *fd) noexcept nogil

cdef struct Twin:
    twin_body body
    void *argument
    const char *name
    int kept[TWIN_KEPT]             # descriptors of the daemon that the twin has too, under the same numbers
    int kept_count
    int parent                      # process id of the daemon
    int slot                        # in the table of twins, -1 when there is none for it
    bint apart                      # it is a process of its own
    int home_end                    # of the socket between the two: the daemon's
    int twin_end
    home_body asked                 # what is to be done at home
    void *asked_argument

cdef void twin_keep(Twin *twin, int fd) noexcept nogil
cdef int twin_run(Twin *twin) noexcept nogil
cdef void at_home(Twin *twin, home_body body, void *argument, int *fd) noexcept nogil
cdef bint is_twin(int pid) noexcept nogil
