"""open() and close() of a guarded file, against the least that can answer: a responder in C that reads and writes.

Root and a C compiler are needed. The C responder guards a directory of its own with the same mark and gives the same
answer, without any question, and tells nobody. One process opens, by turns, a file of the one and of the other, from
another core than theirs; and, without a goal, from the same, where what they do behind an answer is waited for, too.
Once more with a thread that keeps Python's lock busy in the daemon, whatever is measured.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.daemon import BINARY, MeasuredDaemon, on_core
from benchmarks.table import NO_GOAL, Comparison

ROUNDS: Final = 9
OPENS: Final = 2000
GOAL: Final = 1.1
TIMEOUT_S: Final = 60.0
BUSY: Final = (sys.executable, "-m", "benchmarks.busy_daemon")

# "respond DIRECTORY ANSWER" answers, "open FILE COUNT ANSWER" asks and prints nanoseconds: the median and
# the 99th of 100.
GUARD_C: Final = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fanotify.h>
#include <sys/prctl.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

static int respond(const char *directory, unsigned int answer)
{
    struct fanotify_event_metadata events[64], *event;
    int group = fanotify_init(FAN_CLASS_CONTENT | FAN_CLOEXEC | FAN_NONBLOCK, O_RDONLY | O_CLOEXEC);
    struct pollfd waiter = {group, POLLIN, 0};
    if (fanotify_mark(group, FAN_MARK_ADD, FAN_OPEN_PERM | FAN_ONDIR | FAN_EVENT_ON_CHILD, AT_FDCWD, directory) != 0) {
        perror(directory);
        return 1;
    }
    puts("ready");
    fflush(stdout);
    for (;;) {
        poll(&waiter, 1, -1);
        ssize_t size = read(group, events, sizeof(events));
        for (event = events; FAN_EVENT_OK(event, size); event = FAN_EVENT_NEXT(event, size)) {
            struct fanotify_response response = {event->fd, answer};
            if (write(group, &response, sizeof(response)) != sizeof(response)) return 1;
            close(event->fd);
        }
    }
}

static long now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000L + now.tv_nsec;
}

static int compare(const void *a, const void *b)
{
    return (*(const long *)a > *(const long *)b) - (*(const long *)a < *(const long *)b);
}

static int open_often(const char *file, int count, int wanted)
{
    long *took = malloc(count * sizeof(long)), begun;
    for (int i = 0; i < count; i++) {
        begun = now_ns();
        int fd = open(file, O_RDONLY);
        if (fd >= 0) close(fd);
        took[i] = now_ns() - begun;
        if ((fd >= 0) != wanted) {
            fprintf(stderr, "%s was %s\n", file, fd >= 0 ? "opened" : "refused");
            return 1;
        }
    }
    qsort(took, count, sizeof(long), compare);
    printf("%ld %ld\n", took[count / 2], took[count - 1 - count / 100]);
    return 0;
}

int main(int argc, char **argv)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (argc == 4 && !strcmp(argv[1], "respond"))
        return respond(argv[2], strcmp(argv[3], "deny") ? FAN_ALLOW : FAN_DENY);
    if (argc == 5 && !strcmp(argv[1], "open"))
        return open_often(argv[2], atoi(argv[3]), strcmp(argv[4], "deny") != 0);
    return 2;
}
"""


@dataclass(slots=True)
class Times:
    """What opening has taken, µs: one value for each round."""

    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Case:
    """A guard, and a file of which it decides."""

    what: str
    denied: bool
    """What the answer is."""
    ours: Path
    """The file that the daemon guards."""
    bare: Path
    """The one that the C responder guards."""
    times: dict[tuple[Path, int], Times] = field(default_factory=lambda: defaultdict(Times))
    """By file and core."""

    @property
    def answer(self) -> str:
        """The word for the C program."""
        return "deny" if self.denied else "allow"

    def measure(self, program: Path, cores: Sequence[int]) -> None:
        """Measure one round."""
        for core, file in itertools.product(cores, (self.bare, self.ours)):
            command = [*on_core(core), str(program), "open", str(file), str(OPENS), self.answer]
            words = subprocess.run(command, check=True, capture_output=True, timeout=TIMEOUT_S).stdout.split()
            self.times[file, core].p50.append(int(words[0]) / 1e3)
            self.times[file, core].p99.append(int(words[1]) / 1e3)

    def compared(self, name: str, cores: Sequence[int]) -> Iterator[Comparison]:
        """The results."""
        near, far = cores
        ours, bare = self.times[self.ours, far], self.times[self.bare, far]
        yield _comparison(f"{self.what}{name}, p50", ours.p50, bare.p50, GOAL)
        yield _comparison(f"{self.what}{name}, p99", ours.p99, bare.p99, NO_GOAL)
        ours, bare = self.times[self.ours, near], self.times[self.bare, near]
        yield _comparison(f"{self.what}{name}, same core, p50", ours.p50, bare.p50, NO_GOAL)


def measure() -> list[Comparison]:
    """Measure all cases, with an idle and with a busy interpreter."""
    found: list[Comparison] = []
    cores = sorted(os.sched_getaffinity(0))
    near, far = cores[0], cores[-1]
    with tempfile.TemporaryDirectory(prefix="argusd-benchmark-") as top:
        program = Path(top, "guard")
        program.with_suffix(".c").write_text(GUARD_C)
        subprocess.run(["cc", "-O2", "-o", program, program.with_suffix(".c")], check=True)
        for command, name in (((str(BINARY),), ""), (BUSY, ", Python busy")):
            with contextlib.ExitStack() as stack:
                daemon = MeasuredDaemon(program=command, flags=["-services=janus"], core=near)
                stack.enter_context(daemon).keep_reading()
                cases = list(_cases(Path(top, f"files{name}"), daemon))
                for case in cases:
                    stack.enter_context(_responder(program, case, near))
                for _, case in itertools.product(range(ROUNDS), cases):
                    case.measure(program, (near, far))
            for case in cases:
                found += case.compared(name, (near, far))
    return found


def _cases(place: Path, daemon: MeasuredDaemon) -> Iterator[Case]:
    """Make the files and the guards."""
    guards: tuple[tuple[str, str, bool, dict[str, Any]], ...] = (
        ("directory, denied", "f", True, {"deny": [""]}),
        ("directory, allowed", "f", False, {"allow": [""]}),
        ("file, denied", "f", True, {"deny": ["f"]}),
        ("file, allowed", "f", False, {"allow": ["f"]}),
        ("beside a denied file", "f", False, {"deny": ["g"]}),
        ("directory, its owner", "f", False, {"deny": [""], "owner": True}),
    )
    for number, (what, opened, denied, guard) in enumerate(guards):
        folders = place / "ours" / str(number), place / "bare" / str(number)
        for folder in folders:
            folder.mkdir(parents=True)
            for name in ("f", "g"):
                (folder / name).touch()
        paths = {kind: [folders[0] / name for name in guard.get(kind, ())] for kind in ("deny", "allow")}
        daemon.guard(f"pod{number}", **paths, owner=guard.get("owner", False))
        yield Case(what, denied, folders[0] / opened, folders[1] / opened)


@contextlib.contextmanager
def _responder(program: Path, case: Case, core: int) -> Iterator[None]:
    command = [*on_core(core), str(program), "respond", str(case.bare.parent), case.answer]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        if process.stdout is None or process.stdout.readline() != b"ready\n":
            raise RuntimeError("the C responder did not start")
        yield
    finally:
        process.kill()
        process.communicate(timeout=TIMEOUT_S)


def _comparison(what: str, values: list[float], bare_values: list[float], goal: float) -> Comparison:
    return Comparison(
        what=what,
        unit="µs",
        measured="open and close",
        reference="C",
        values=values,
        reference_values=bare_values,
        goal=goal,
    )
