# cython: language_level=3, boundscheck=False, wraparound=False
"""Guards: what Python sees of the permission groups and their threads.

Who owns what:

* ``Group`` (guarding/table.pxd): a fanotify group and its responder thread, which alone reads the tables and answers.
  There are up to two: for local file systems, and for those whose server may keep us waiting.
* ``Reporter`` (guarding/reporter.pyx): the thread that makes the lines of what was answered.
* ``Guard``, ``Guarded`` (guarding/guards.pyx): one subject in one container, and one of its paths. The watch engine
  looks the paths up, again whenever what they stand for may have changed, and hands over what it finds.
"""

import os

from cpython.ref cimport Py_INCREF
from libc.stdlib cimport calloc, free

from argusd.guarding.groups cimport gate_close, gate_free, gate_init, gate_open
from argusd.guarding.guards cimport (
    STEP_AUDIT,
    STEP_CHECK,
    STEP_INIT,
    STEP_KIND,
    STEP_MARK,
    guard_end,
)
from argusd.guarding.reporter cimport GROUPS
from argusd.guarding.table cimport Group, Subject
from argusd.includes.fanotify cimport stack_take
from argusd.includes.pthread cimport load_int, load_pointer, load_u64

EVENTS = {"OPEN_PERM": 0x10000, "ACCESS_PERM": 0x20000}

cdef dict STEPS = {STEP_INIT: "init", STEP_AUDIT: "audit", STEP_MARK: "mark", STEP_CHECK: "check", STEP_KIND: "kind"}


class GuardError(OSError):
    step = ""


cdef object guard_error(int step, int error, path):
    failure = GuardError(error, os.strerror(error), path)
    failure.step = STEPS[step]
    return failure


cdef class Guards:
    def __cinit__(self, Output output not None):
        cdef int i
        self.closed = True
        self.output = output
        self.encoders = {}
        self.ending = {}
        self.gate.reporter.sink_count = output.count
        for i in range(output.count):
            self.gate.reporter.sinks[i] = output.sinks[i]
        error = gate_init(&self.gate)
        if error:
            raise OSError(error, f"cannot start the reporter thread: {os.strerror(error)}")
        self.closed = False

    def __dealloc__(self):
        if not self.closed:
            self.close(0.0)
        gate_free(&self.gate)

    cdef Guard *guard(self, int number, Encoder encoder, int init, bint owner_allowed, uint32_t bits,
                      bint audit) except NULL:
        """A new guard without any path; the engine ends it with ``guard_end``."""
        cdef Guard *guard
        cdef int error, no_audit = 0, step = STEP_INIT
        if self.closed:
            raise RuntimeError("the guards are closed")
        self.forget()
        with nogil:
            error = gate_open(&self.gate, &no_audit)
        if audit and not error:
            step, error = STEP_AUDIT, no_audit
        if error:
            raise guard_error(step, error, None)
        guard = <Guard *>calloc(1, sizeof(Guard))
        if guard == NULL:
            raise MemoryError
        guard.gate, guard.number, guard.init, guard.bits = &self.gate, number, init, bits
        guard.owner_allowed, guard.audit = owner_allowed, audit
        guard.lines = &encoder.lines
        self.encoders[number] = encoder
        return guard

    cdef void end(self, Guard *guard) noexcept:
        """Free a guard that has no entry any more."""
        cdef int number = guard.number, subjects = guard_end(guard)
        if subjects:
            self.ending[number] = subjects
        else:
            del self.encoders[number]

    cdef void forget(self) noexcept:
        """Let go of encoders of which no line can be made any more."""
        cdef Subject *subject = <Subject *>stack_take(&self.gate.reporter.ended)
        cdef Subject *after
        while subject != NULL:
            after = subject.next
            self.ending[subject.number] -= 1
            if self.ending[subject.number] == 0:
                del self.ending[subject.number], self.encoders[subject.number]
            free(subject)
            subject = after

    def statistics(self):
        cdef Group *group
        cdef unsigned long long allowed = 0, denied = 0, dropped = 0, failed = 0
        cdef int i, groups = 0, strays = 0
        self.forget()
        for i in range(GROUPS):
            group = <Group *>load_pointer(&self.gate.reporter.groups[i])
            if group != NULL:
                groups += 1
                allowed += load_u64(&group.allowed)
                denied += load_u64(&group.denied)
                dropped += load_u64(&group.dropped)
                failed += load_u64(&group.failed)
                strays += load_int(&group.strays)
        return {
            "allowed": allowed,
            "denied": denied,
            "lines": load_u64(&self.gate.reporter.lines),
            "dropped": dropped,
            "failed": failed,
            "groups": groups,
            "strays": strays,
            "guards": len(self.encoders),
        }

    def notices(self):
        cdef list found = []
        cdef Group *group
        cdef int i
        cdef int broken = 0
        counts = self.statistics()
        if counts["dropped"] > self.told_dropped:
            found.append(("dropped", counts["dropped"] - self.told_dropped))
            self.told_dropped = counts["dropped"]
        if counts["failed"] > self.told_failed:
            found.append(("failed", counts["failed"] - self.told_failed))
            self.told_failed = counts["failed"]
        for i in range(GROUPS):
            group = <Group *>load_pointer(&self.gate.reporter.groups[i])
            broken += group != NULL and load_int(&group.broken)
        if broken > self.told_broken:
            found.append(("broken", broken - self.told_broken))
            self.told_broken = broken
        return found

    def close(self, double drain_s=1.0):
        cdef int timeout_ms = <int>(drain_s * 1000)
        if self.closed:
            return
        self.closed = True
        with nogil:
            gate_close(&self.gate, timeout_ms)
        if not self.gate.ended:
            Py_INCREF(self)         # a file system does not answer: what that thread uses stays until the process ends
