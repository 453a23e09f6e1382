"""Processes that open files without a pause, judge every answer, and keep the longest time that one took."""

from __future__ import annotations

import enum
import mmap
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.load.watched import until

WORKERS: Final = 16
TIMEOUT_S: Final = 20.0

# What both sides share: how answers are judged, and a slot for each worker.
_HEAD: Final = struct.Struct("=II56x")
_SLOT: Final = struct.Struct("=8Q")

_C: Final = r"""
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct slot { uint64_t rounds, opened, refused, wrongly_opened, wrongly_refused, longest_ns, begun_ns, wrong; };
struct control { uint32_t generation, stop; char rest[56]; struct slot slots[]; };

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000ULL + now.tv_nsec;
}

/* Opens and reads the file; 1 when that was refused. Nobody else's end is our failure. */
static int use(const char *path)
{
    char byte;
    int fd = open(path, O_RDONLY | O_CLOEXEC), refused = fd < 0;
    if (fd >= 0) {
        refused = read(fd, &byte, 1) < 0 && errno != EISDIR;
        close(fd);
    }
    if (refused && errno != EPERM) {
        perror(path);
        exit(3);
    }
    return refused;
}

static void hammer(struct control *control, struct slot *slot, int count, char **paths)
{
    struct timespec pause = {0, 10000000};
    for (; !__atomic_load_n(&control->stop, __ATOMIC_ACQUIRE); slot->rounds++)
        for (int i = 0; i < count && !control->stop; i++) {
            uint32_t generation = __atomic_load_n(&control->generation, __ATOMIC_ACQUIRE);
            if (generation % 4 == 3) nanosleep(&pause, NULL);
            uint64_t begun = now_ns(), took;
            __atomic_store_n(&slot->begun_ns, begun, __ATOMIC_RELEASE);
            int refused = use(paths[i] + 1);
            __atomic_store_n(&slot->begun_ns, 0, __ATOMIC_RELEASE);
            took = now_ns() - begun;
            if (took > slot->longest_ns) slot->longest_ns = took;
            if (refused) slot->refused++; else slot->opened++;
            if (generation != __atomic_load_n(&control->generation, __ATOMIC_ACQUIRE)) continue;
            int guarded = generation % 4 == 1, free = generation % 4 == 2, denied = paths[i][0] != '+';
            if (guarded && denied && !refused) slot->wrongly_opened++, slot->wrong = i;
            if (refused && (free || (guarded && !denied))) slot->wrongly_refused++, slot->wrong = i;
        }
}

/* Puts new files in the place of those that are marked for it. */
static void replace(struct control *control, const char *folder, int count, char **paths)
{
    char fresh[4096];
    struct timespec pause = {0, 2000000};
    while (!__atomic_load_n(&control->stop, __ATOMIC_ACQUIRE)) {
        for (int i = 0; i < count; i++) {
            if (paths[i][0] != '*') continue;
            snprintf(fresh, sizeof(fresh), "%s/%d", folder, i);
            int fd = open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
            if (fd < 0 || write(fd, "x", 1) != 1 || close(fd) != 0 || rename(fresh, paths[i] + 1) != 0) {
                perror(fresh);
                exit(4);
            }
        }
        nanosleep(&pause, NULL);
    }
}

int main(int argc, char **argv)
{
    int workers = atoi(argv[3]), status, code = 0, fd = open(argv[1], O_RDWR);
    size_t size = sizeof(struct control) + workers * sizeof(struct slot);
    struct control *control = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (control == MAP_FAILED) return 1;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    nice(5);    /* so that a daemon can start beside them */
    for (int i = 0; i <= workers; i++)
        if (fork() == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            if (i < workers) hammer(control, &control->slots[i], argc - 4, argv + 4);
            else replace(control, argv[2], argc - 4, argv + 4);
            _exit(0);
        }
    while (wait(&status) > 0)
        if (status) code = 2;
    return code;
}
"""


class Expect(enum.IntEnum):
    """How answers are judged."""

    ANYTHING = 0
    GUARDED = 1
    FREE = 2
    LITTLE = 3
    """Anything, and the processes take it easy."""


@dataclass(frozen=True, slots=True)
class Slot:
    """What one worker has seen; ``begun_ns`` is when the open that it waits for began, else 0."""

    rounds: int
    opened: int
    refused: int
    wrongly_opened: int
    wrongly_refused: int
    longest_ns: int
    begun_ns: int
    wrong: int


class Hammer:
    """``with Hammer(folder, denied=…, allowed=…) as hammer: hammer.expect(Expect.GUARDED) …``."""

    def __init__(
        self, folder: Path, *, denied: Sequence[Path], allowed: Sequence[Path], replaced: Sequence[Path] = ()
    ) -> None:
        """``denied`` and ``replaced`` are refused while there are guards; the latter are new files all the time."""
        self._folder = folder
        self._paths = [f"-{path}" for path in denied] + [f"*{path}" for path in replaced]
        self._paths += [f"+{path}" for path in allowed]
        self._generation = 0

    def __enter__(self) -> Self:
        program, control, fresh = (self._folder / name for name in ("hammer", "control", "fresh"))
        if not program.exists():
            program.with_suffix(".c").write_text(_C)
            subprocess.run(["cc", "-O2", "-o", program, program.with_suffix(".c")], check=True)
        control.write_bytes(bytes(_HEAD.size + WORKERS * _SLOT.size))
        fresh.mkdir(exist_ok=True)
        with control.open("r+b") as file:
            self._control = mmap.mmap(file.fileno(), 0)
        self._process = subprocess.Popen([program, control, fresh, str(WORKERS), *self._paths], stderr=subprocess.PIPE)
        try:
            self.go_round()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        """All must end by themselves: who is stuck in an open cannot."""
        self._write(stop=1)
        try:
            _, words = self._process.communicate(timeout=TIMEOUT_S)
        finally:
            self._process.kill()
            self._process.wait()
            self._control.close()
        assert self._process.returncode == 0, words.decode()

    def expect(self, how: Expect) -> None:
        """Judge every open that begins from now on."""
        self._generation += 4 + how - self._generation % 4
        self._write(stop=0)

    @property
    def slots(self) -> list[Slot]:
        """What each worker has seen by now."""
        return [Slot(*_SLOT.unpack_from(self._control, _HEAD.size + i * _SLOT.size)) for i in range(WORKERS)]

    @property
    def opens(self) -> int:
        """How many there were, whatever the answer."""
        return sum(slot.opened + slot.refused for slot in self.slots)

    @property
    def longest_s(self) -> float:
        """The longest time that an open with a read took."""
        return max(slot.longest_ns for slot in self.slots) / 1e9

    def go_round(self) -> None:
        """Wait until every worker has used every file since now."""
        before = self.slots
        until(
            lambda: all(now.rounds >= then.rounds + 2 for now, then in zip(self.slots, before, strict=True)),
            "every worker gets its answers",
            timeout_s=TIMEOUT_S,
        )

    def wrong(self) -> list[str]:
        """What was answered wrongly."""
        return [
            f"worker {i}: {slot.wrongly_opened} wrongly opened, {slot.wrongly_refused} wrongly refused, "
            f"the last was {self._paths[slot.wrong][1:]}"
            for i, slot in enumerate(self.slots)
            if slot.wrongly_opened or slot.wrongly_refused
        ]

    def _write(self, *, stop: int) -> None:
        _HEAD.pack_into(self._control, 0, self._generation, stop)
