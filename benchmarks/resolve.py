"""Finding a container by its id on a node with 5,000 processes, against a plain scan of /proc.

The processes are real, in the cgroups of 250 containers, and do nothing. Root, a C compiler and a cgroup hierarchy that
can be written are needed. The two ways take turns, each time for another container.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from argusd.cgroups import trees
from argusd.containers import find
from benchmarks.table import Comparison

PODS: Final = 125
CONTAINERS_OF_A_POD: Final = 2
PROCESSES_OF_A_CONTAINER: Final = 20
ROUNDS: Final = 40
ALLOWED_MS: Final = 5.0
GOAL: Final = 0.1
TIMEOUT_S: Final = 60.0

# Enters each cgroup.procs that is named on its command line and leaves children there. Ends them when its input ends.
CROWD_C: Final = r"""
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv) {
    int each = atoi(argv[1]), count = 0;
    pid_t *children = calloc((size_t)argc * each, sizeof(pid_t)), own = getpid();
    char byte;
    for (int group = 2; group < argc; group++) {
        int fd = open(argv[group], O_WRONLY);
        if (fd < 0 || write(fd, "0", 1) != 1 || close(fd) != 0) return 1;
        for (int i = 0; i < each; i++) {
            pid_t child = fork();
            if (child < 0) return 1;
            if (child == 0) {
                prctl(PR_SET_PDEATHSIG, SIGKILL);
                if (getppid() != own) _exit(1);
                for (;;) pause();
            }
            children[count++] = child;
        }
    }
    if (write(1, "ready\n", 6) != 6) return 1;
    while (read(0, &byte, 1) > 0) {}
    for (int i = 0; i < count; i++) kill(children[i], SIGKILL);
    while (wait(NULL) > 0) {}
    return 0;
}
"""


@contextlib.contextmanager
def crowded_node() -> Iterator[list[str]]:
    """A node full of containers; gives their ids."""
    if os.geteuid() != 0:
        raise RuntimeError("the benchmark 'resolve' needs root: it makes cgroups")
    # Of several hierarchies that of v2: its cgroups have the most files, and it is all that newer systems have.
    tree = min(trees(), key=lambda tree: tree.name != "unified")
    top = tree / f"argusd-benchmark-{os.getpid()}"
    ids = [secrets.token_hex(32) for _ in range(PODS * CONTAINERS_OF_A_POD)]
    folders = [top / f"pod{number % PODS}" / full for number, full in enumerate(ids)]
    try:
        for folder in folders:
            folder.mkdir(parents=True)
        with _crowd(folders):
            yield ids
    finally:
        for path, _, _ in os.walk(top, topdown=False):
            _remove(Path(path))


@contextlib.contextmanager
def _crowd(folders: list[Path]) -> Iterator[None]:
    with tempfile.TemporaryDirectory(prefix="argusd-benchmark-") as place:
        source, program = Path(place, "crowd.c"), Path(place, "crowd")
        source.write_text(CROWD_C)
        subprocess.run(["cc", "-O2", "-o", program, source], check=True)
        command = [str(program), str(PROCESSES_OF_A_CONTAINER), *(f"{folder}/cgroup.procs" for folder in folders)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            if process.stdout is None or process.stdout.readline() != b"ready\n":
                raise RuntimeError("the processes could not all be started")
            yield
        finally:
            process.communicate(timeout=TIMEOUT_S)  # closes its input


def _remove(folder: Path) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            folder.rmdir()
        except OSError:  # a process takes a moment to leave its cgroup when it has ended
            if time.monotonic() > deadline:
                raise
        else:
            return


def resolve_ms(full: str) -> float:
    """Find a container; how long it took."""
    start_s = time.perf_counter()
    found = find([full])
    took_s = time.perf_counter() - start_s
    found[full].close()
    return took_s * 1e3


def scan_ms(full: str) -> float:
    """Find the processes of a container by reading the cgroup of every one; how long it took."""
    start_s, wanted = time.perf_counter(), full.encode()
    pids = []
    for entry in os.listdir("/proc"):  # noqa: PTH208  (the cheapest way, to be fair)
        if entry.isdecimal():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                fd = os.open(f"/proc/{entry}/cgroup", os.O_RDONLY)
                try:
                    if wanted in os.read(fd, 1 << 16):
                        pids.append(int(entry))
                finally:
                    os.close(fd)
    took_s = time.perf_counter() - start_s
    if len(pids) < PROCESSES_OF_A_CONTAINER:
        raise RuntimeError(f"the scan found {len(pids)} processes of the container")
    return took_s * 1e3


def measure() -> list[Comparison]:
    """Measure; takes about ten seconds."""
    with crowded_node() as ids:
        resolve_ms(ids[0])  # warms up what is used for the first time
        found, scanned = [], []
        for full in ids[:ROUNDS]:
            found.append(resolve_ms(full))
            scanned.append(scan_ms(full))
    return [
        _comparison("an id among 5,000 processes", "plain scan", found, scanned, GOAL),
        _comparison("the same, against what is allowed", "allowed", found, [ALLOWED_MS], 1.0),
    ]


def _comparison(
    what: str, reference: str, values: list[float], reference_values: list[float], goal: float
) -> Comparison:
    return Comparison(
        what=what,
        unit="ms",
        measured="argusd",
        reference=reference,
        values=values,
        reference_values=reference_values,
        goal=goal,
    )
