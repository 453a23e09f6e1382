# cython: language_level=3, boundscheck=False, wraparound=False
"""The containers that are watched: one Place for each living init process, shared by its subscriptions.

The list and the number of users change under Core's lock only, because the reader and the walker go through the list.
A Place is freed by whoever gives up its last use, so a thread that holds a subscription may use its Place.
"""

from libc.errno cimport ENOMEM, errno
from libc.stdlib cimport calloc, free

from argusd.engine.core cimport core_lock, core_unlock
from argusd.engine.dispatch cimport jobs_drop
from argusd.engine.opening cimport ended, process_start
from argusd.includes.linux cimport F_DUPFD_CLOEXEC, close, fcntl


cdef Place *place_new(int pid, int pidfd, int *error) noexcept nogil:
    cdef Place *place = <Place *>calloc(1, sizeof(Place))
    if place == NULL:
        error[0] = ENOMEM
        return NULL
    place.pid = pid
    place.users = 1
    place.pidfd = fcntl(pidfd, F_DUPFD_CLOEXEC, 0)
    if place.pidfd < 0:
        error[0] = errno
        free(place)
        return NULL
    place.start = process_start(pid)
    if ended(place.pidfd):
        place.start = 0             # that may have been another process: this one is found to have ended by each walk
    return place


cdef void place_free(Place *place) noexcept nogil:
    close(place.pidfd)
    free(place.mounts)
    free(place.starved.jobs)
    free(place)


cdef Place *place_join(Core *core, int pid, int pidfd, int *error) noexcept nogil:
    """One use of the Place of a living process; ``pidfd`` stays the caller's. NULL, with an errno, on failure."""
    cdef Place *made = place_new(pid, pidfd, error)
    cdef Place *place
    if made == NULL:
        return NULL
    core_lock(core)
    place = core.places
    while place != NULL and (place.pid != pid or ended(place.pidfd)):
        place = place.next
    if place != NULL:
        place.users += 1
    else:
        made.next = core.places
        core.places = made
    core_unlock(core)
    if place == NULL:
        return made
    place_free(made)
    return place


cdef void place_leave(Core *core, Place *place) noexcept nogil:
    """Give up one use."""
    cdef Place **link
    cdef bint unused
    core_lock(core)
    place.users -= 1
    unused = place.users == 0
    if unused:
        link = &core.places
        while link[0] != place:
            link = &link[0].next
        link[0] = place.next
        core.starving -= place.starved_now
        jobs_drop(core, place)
    core_unlock(core)
    if unused:
        place_free(place)
