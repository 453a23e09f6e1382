"""Fuzzes what reads text in which a container has had its say: mountinfo, cgroup, stat, the pid files of runtimes.

    python -m tests.fuzz.parsers --duration-s 60 --seed 1

The texts are what the kernel could write: a container chooses names, and the kernel escapes those in its own way. What
the parsers find is compared with what was put in. Under AddressSanitizer (packaging/sanitize.sh) a stray read ends it.
"""

from __future__ import annotations

import argparse
import random
import string
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from argusd import cgroups, pidfiles, processes
from tests.fuzz import native

HEX: Final = "0123456789abcdef"
PIECES: Final = (
    b" ",
    b"\n",
    b"\t",
    b"\\",
    b"\\040",
    b"#",
    b")",
    b"(",
    b" - ",
    b"\0",
    b"\xff",
    b"/",
    b"..",
    b":",
    b"NSpid:",
)
ESCAPED: Final = b" \t\n\\#"  # mangle() of the kernel, for fields of mountinfo
NOTE: Final = "run/containerd/io.containerd.runtime.v2.task/k8s.io/{id}/init.pid"


def name(chance: random.Random, *, zero: bool = False) -> bytes:
    """Whatever a container may call something."""
    length = chance.choice([0, 1, 1, 2, 5, 15, 60, 255])
    text = b"".join(
        chance.choice(PIECES) if chance.random() < 0.4 else bytes([chance.randrange(1, 256)]) for _ in range(length)
    )
    return text if zero else text.replace(b"\0", b"")


def escape(text: bytes) -> bytes:
    """As the kernel writes it."""
    return b"".join(b"\\%03o" % byte if byte in ESCAPED else bytes([byte]) for byte in text)


def fuzz_mountinfo(chance: random.Random) -> None:
    """Each mount is found as it is, its options too; a text that ends anywhere does no harm."""
    lines, expected = [], []
    for _ in range(chance.choice([0, 1, 2, 10])):
        point = b"/" + b"/".join(name(chance) for _ in range(chance.choice([0, 1, 3])))
        point = point[: chance.choice([10, 4000])]
        number, major, minor = chance.randrange(1 << 31), chance.randrange(1 << 12), chance.randrange(1 << 20)
        readonly, kind = chance.random() < 0.5, chance.choice([b"ext4", b"fuse.sshfs", b"overlay", b"nfs4"])
        options = chance.choice([b"", b",noexec", b",relatime,rodata"])
        optional = b" ".join(chance.choice([[], [b"shared:1"], [b"master:2", b"propagate_from:3"]]))
        layers = b"rw,lowerdir=" + escape(name(chance).replace(b",", b"")) + chance.choice([b"", b",upperdir=/x"])
        fields = [
            b"%d %d %d:%d" % (number, chance.randrange(99), major, minor),
            escape(b"/" + name(chance)),
            escape(point),
        ]
        fields += [(b"ro" if readonly else b"rw") + options, *([optional] if optional else []), b"-", kind]
        lines.append(b" ".join([*fields, escape(name(chance)) or b"none", layers]) + b"\n")
        expected.append((number, major << 32 | minor, point, kind, readonly))
    text = b"".join(lines)
    found = native.mounts(text)
    assert found == expected, (text, found)
    points = native.points(text)
    assert points == [mount[2] for mount in expected], (text, points)
    cut = text[: chance.randrange(len(text) + 1)]
    assert native.mounts(cut) == expected[: cut.count(b"\n")], cut
    native.points(cut)


def fuzz_stat(chance: random.Random) -> None:
    """A command may call itself anything of 15 bytes, and it is not escaped."""
    command = name(chance)[:15]
    numbers = [chance.randrange(1 << 22) for _ in range(49)]
    state = chance.choice(b"RSDZTtXxI")
    text = b"%d (%s) %c %s\n" % (numbers[0], command, state, b" ".join(b"%d" % number for number in numbers))
    found = processes._parse_stat(text)
    assert found, text
    ended = bytes([state]) in {b"Z", b"X", b"x"} and numbers[16] <= 1
    assert found == processes.Stat(ended, numbers[18], numbers[0]), text
    assert native.parent(text + b"\0") == numbers[0], text
    cut = text[: chance.randrange(len(text))]
    native.parent(cut + b"\0")
    if cut.count(b" ") < 2:
        assert processes._parse_stat(cut) is None, cut


def fuzz_cgroup(chance: random.Random) -> None:
    """Ids are 64 digits that a runtime has put there; whatever else a path holds, nothing else is taken for one."""
    full = "".join(chance.choice(HEX) for _ in range(64)).encode()
    form = chance.choice(
        [b"/docker/%s", b"/kubepods.slice/cri-containerd-%s.scope", b"/kubepods/pod1/%s", b"/crio-%s.scope"]
    )
    junk = [b"/" + name(chance).replace(b"/", b"").replace(b"\n", b"\\012") for _ in range(chance.choice([0, 1, 3]))]
    junk = [part[: chance.choice([4, 60])] for part in junk]  # shorter than an id
    text = b"0::" + form % full + b"".join(junk) + b"\n"
    found = cgroups.depths_in(text)
    assert found == {full: 0}, (text, found)
    assert cgroups.depths_in(b"1:name=systemd:" + b"".join(junk) + b"\n") == {}, junk


def fuzz_pid_files(chance: random.Random) -> None:
    """A note is a number or none at all."""
    full = "0" * 64
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        note = Path(folder, NOTE.format(id=full))
        note.parent.mkdir(parents=True)
        kind = chance.randrange(4)
        content = name(chance, zero=True)
        if kind == 0:
            content = str(chance.randrange(1 << 22)).encode() + chance.choice([b"", b"\n", b" ", b"x"])
        note.symlink_to("/etc/passwd") if kind == 1 else note.write_bytes(content)
        found = pidfiles.init_pid(full, Path(folder))
        digits = content.strip(string.whitespace.encode())[:16]
        assert found is None or (kind != 1 and found == int(digits)), content


TARGETS: Final[tuple[Callable[[random.Random], None], ...]] = (fuzz_mountinfo, fuzz_stat, fuzz_cgroup, fuzz_pid_files)


def main() -> int:
    """Fuzz until the time is over; what fails raises, and its seed is printed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--duration-s", type=float, default=60)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    asked = parser.parse_args()
    deadline, number = time.monotonic() + asked.duration_s, 0
    while time.monotonic() < deadline:
        for target in TARGETS:
            try:
                target(random.Random(f"{asked.seed}.{number}"))
            except Exception:
                print(f"{target.__name__} failed with seed {asked.seed}.{number}", file=sys.stderr)
                raise
        number += 1
    print(f"seed {asked.seed}: {number} texts for each of {len(TARGETS)} parsers, all understood")
    return 0


if __name__ == "__main__":
    sys.exit(main())
