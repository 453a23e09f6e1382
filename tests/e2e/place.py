"""Where the runtimes live during a test run: a folder, namespaces, and one image that nobody downloads.

Every runtime is started in a mount namespace, so the overlay mounts that it makes are never seen by the host and end
with it, and its /run is a tmpfs of its own; what lies on /sys/fs/cgroup is chosen by the test. Their pid namespace is
their own as well: there a test may say which pid comes next, and nothing outlives it. To the runtimes, and to a daemon
that runs beside them, it is what the host's is on a node. The cgroups are the host's, below a folder of ours.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import platform
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, Self

from demo.container import CGROUPS, INIT
from tests.containers import rootfs_template
from tests.daemon import COMMAND, ROOT, WAIT_S, Daemon

IMAGE: Final = "localhost/argusd-test:1"
PAUSE: Final = "localhost/argusd-pause:1"
ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
HOLDER: Final = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private")
LAST_PID: Final = Path("/proc/sys/kernel/ns_last_pid")
STEP_S: Final = 0.01
STOP_TIMEOUT_S: Final = 20.0


def host_layout() -> str:
    """What this machine has on /sys/fs/cgroup."""
    if (CGROUPS / "cgroup.controllers").exists():
        return "v2"
    return "hybrid" if (CGROUPS / "unified" / "cgroup.procs").exists() else "v1"


HOST_LAYOUT: Final = host_layout()
RUNC_WITHOUT_LIMITS: Final = f"""#!{sys.executable} -IS
import json, os, sys
for flag, value in zip(sys.argv, sys.argv[1:]):
    if flag in ("-b", "--bundle"):
        with open(value + "/config.json", "r+") as file:
            config = json.load(file)
            config["linux"].pop("resources", None)
            file.seek(0)
            file.truncate()
            json.dump(config, file)
os.execvp("runc", ["runc", *sys.argv[1:]])
"""
UNMOUNT_ALL: Final = ("umount", "--recursive", "--lazy", str(CGROUPS))
MOUNT_V2: Final = ("mount", "-t", "cgroup2", "cgroup2", str(CGROUPS))
# How a layout is reached from the host's. The kernel gives a controller to one version only: no way leads from v2.
MOUNTS: Final[dict[tuple[str, str], tuple[tuple[str, ...], ...]]] = {
    ("v1", "v1"): (),
    ("v1", "v2"): (UNMOUNT_ALL, MOUNT_V2),
    ("hybrid", "hybrid"): (),
    ("hybrid", "v1"): (("umount", "--lazy", str(CGROUPS / "unified")),),
    ("hybrid", "v2"): (UNMOUNT_ALL, MOUNT_V2),
    ("v2", "v2"): (),
}


def missing_for(layout: str) -> str:
    """Why there cannot be such a layout here, in words for a skip; empty when there can."""
    if (HOST_LAYOUT, layout) in MOUNTS:
        return ""
    return f"needs a machine with cgroup {layout}: this one has {HOST_LAYOUT}"


def missing_for_chosen_pids() -> str:
    """Why a test cannot choose the next pid here, in words for a skip; empty when it can."""
    return "" if LAST_PID.exists() else f"needs {LAST_PID}: a kernel with CONFIG_CHECKPOINT_RESTORE"


class RuntimeFailedError(Exception):
    """A runtime's program failed; the text is what it said."""


def until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Wait for a condition of another process; TimeoutError naming ``what`` when it does not come."""
    pause = threading.Event()
    for _ in range(int(timeout_s / STEP_S)):
        if condition():
            return
        pause.wait(STEP_S)
    raise TimeoutError(f"{what}: not within {timeout_s:.0f} s")


class Place:
    """The folder and the namespaces. Leaving the context ends what was started in it."""

    def __init__(self, folder: Path, layout: str = HOST_LAYOUT) -> None:
        """``layout`` is what is mounted on /sys/fs/cgroup for the runtimes: a key of MOUNTS."""
        self.folder: Final = folder
        self.layout: Final = layout
        self.cgroup: Final = f"/argusd-e2e-{os.getpid()}-{layout}"
        self.image: Final = folder / "image.tar"
        self.init = 0
        self.runc = ""

    def __enter__(self) -> Self:
        # cat ends with its stdin: should this process be killed, cat goes, and as the first process of its namespace
        # it takes the rest along. It ignores SIGCHLD: so the kernel buries the orphans that it inherits.
        self._holder = subprocess.Popen(
            [*HOLDER, "env", "--ignore-signal=CHLD", "cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        try:
            self._furnish()
        except BaseException:
            self._holder.communicate()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.call("sh", "-c", "kill -s KILL -- -1 || :")  # it fails when nobody is left
            until(lambda: self.pids() == [1], STOP_TIMEOUT_S, "an empty pid namespace")
            self._remove_cgroups()
        finally:
            self._holder.communicate()

    def _furnish(self) -> None:
        until(lambda: command_of(Path(f"/proc/{self._init()}")) == "cat", 5, "namespaces")
        self.init = self._init()
        self.call("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
        for argv in MOUNTS[HOST_LAYOUT, self.layout]:
            self.call(*argv)
        self.runc = self._runc()
        write_image(self.image)

    @property
    def root(self) -> Path:
        """The host's files as the place sees them: its /proc, its /sys/fs/cgroup, its /run."""
        return Path(f"/proc/{self.init}/root")

    @property
    def proc(self) -> Path:
        """The place's /proc."""
        return self.root / "proc"

    def pids(self) -> list[int]:
        """All processes of the place, by the pids that they have there."""
        return [int(path.name) for path in self.proc.iterdir() if path.name.isdecimal()]

    def next_pids(self, number: int) -> None:
        """From now on new processes of the place get pids from ``number`` on, as after a wrap of the pids."""
        self.call("sh", "-c", f"echo {number - 1} >{LAST_PID}")

    def enter(self, *argv: str) -> list[str]:
        """A command line that runs ``argv`` in the place, as the child of nsenter."""
        return ["nsenter", f"--target={self.init}", "--mount", "--pid", "--", *argv]

    def call(self, *argv: str) -> str:
        """Run a command in the place, to its end; returns its stdout, raises RuntimeFailedError."""
        done = subprocess.run(self.enter(*argv), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeFailedError(f"{' '.join(argv)}: exit {done.returncode}: {done.stderr.strip()}")
        return done.stdout.strip()

    def call_detached(self, *argv: str) -> None:
        """Run a command that leaves a process behind, which would keep a pipe to us open."""
        log = self.folder / f"{Path(argv[0]).name}.log"
        with log.open("wb") as output:
            done = subprocess.run(
                self.enter(*argv), stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False
            )
        if done.returncode != 0:
            raise RuntimeFailedError(f"{' '.join(argv)}: exit {done.returncode}: {log.read_text().strip()}")

    @contextlib.contextmanager
    def service(self, *argv: str, ready: Callable[[], bool], timeout_s: float = 30.0) -> Iterator[None]:
        """Run a daemon in the place for as long as the context lasts, entered when ``ready`` holds."""
        log = self.folder / f"{Path(argv[0]).name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(self.enter(*argv), stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            try:
                until(lambda: process.poll() is not None or ready(), timeout_s, argv[0])
            except TimeoutError as late:
                raise RuntimeFailedError(f"{late}; its log ends: {log.read_text()[-2000:]}") from late
            if process.returncode is not None:
                raise RuntimeFailedError(f"{argv[0]}: exit {process.returncode}: {log.read_text()[-2000:]}")
            yield
        finally:
            end(process)

    @contextlib.contextmanager
    def process_in(self, cgroup: str) -> Iterator[None]:
        """Keep a process in a root and a cgroup of its own, in every hierarchy that takes it as it is."""
        folders = [str(hierarchy / cgroup.lstrip("/")) for hierarchy in self._hierarchies()]
        script = (
            'for folder; do mkdir -p "$folder" && echo $$ >"$folder/cgroup.procs" || exit; done;'
            'PATH=$PATH:/usr/sbin; exec chroot "$0" /bin/sleep 3600'
        )
        command = self.enter("sh", "-c", script, str(rootfs_template()), *folders)
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        try:
            until(lambda: command_of(Path(f"/proc/{inner(process)}")) == "sleep", 5, f"a process in {cgroup}")
            yield
        finally:
            end(process)

    def _runc(self) -> str:
        """The runc to use: one that asks for no limits where the controllers belong to v1 and the layout is v2."""
        controllers = self.root / "sys/fs/cgroup/cgroup.controllers"
        if not controllers.exists() or "memory" in controllers.read_text().split():
            return "runc"
        program = self.folder / "runc-without-limits"
        program.write_text(RUNC_WITHOUT_LIMITS)
        program.chmod(0o755)
        return str(program)

    def _hierarchies(self) -> list[Path]:
        """Where the place has cgroups that take processes without more ado (a cpuset wants its processors named)."""
        if (self.root / "sys/fs/cgroup/cgroup.controllers").exists():
            return [CGROUPS]
        names = ("systemd", "pids", "memory", "unified")
        return [CGROUPS / name for name in names if (self.root / f"sys/fs/cgroup/{name}/cgroup.procs").exists()]

    def _init(self) -> int:
        return inner(self._holder)

    def _remove_cgroups(self) -> None:
        cgroups = self.root / "sys/fs/cgroup"
        for hierarchy in (cgroups, *(path for path in cgroups.iterdir() if path.is_dir())):
            for folder, _, _ in os.walk(hierarchy / self.cgroup.lstrip("/"), topdown=False):
                with contextlib.suppress(OSError):  # a cgroup that a zombie still holds stays
                    Path(folder).rmdir()


class PlacedDaemon(Daemon):
    """A daemon in the place: its /proc and cgroups are what it sees. It gets signals although nsenter stands before."""

    def __init__(self, place: Place, *flags: str, command: Sequence[str] = COMMAND) -> None:
        """``command`` is run in the place."""
        # nsenter leaves the working folder behind.
        super().__init__(*flags, command=place.enter(*command), environment={"PYTHONPATH": str(ROOT)})

    @property
    def pid(self) -> int:
        """The daemon's process id, on the host."""
        return inner(self.process)

    @property
    def watches(self) -> list[str]:
        """What the kernel watches for it, its own mark in the queue included."""
        return inotify_watches(Path(f"/proc/{self.pid}"))

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Have it see nothing of what happens meanwhile. nsenter stops after its child, and wakes it before itself."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            until(lambda: "\nState:\tT" in Path(f"/proc/{self.process.pid}/status").read_text(), WAIT_S, "a stop")
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def stop(self, timeout_s: float = WAIT_S) -> int:
        """Ask for an orderly end and return the exit code; TimeoutExpired when it does not come."""
        if pid := self.pid:
            os.kill(pid, signal.SIGTERM)
        code = self.process.wait(timeout_s)
        self._reader.join(timeout_s)
        return code

    def kill(self) -> None:
        """End it at once."""
        end(self.process, [signal.SIGKILL])
        self._reader.join()


def inotify_watches(process: Path) -> list[str]:
    """The kernel's list of the inotify watches of a process, which is given by its folder in a /proc.

    Those of cgroups are left out: they stay for as long as the pod does, whatever is watched in it.
    """
    lines: list[str] = []
    cgroups = cgroup_devices()
    for info in (process / "fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            lines += (line for line in info.read_text().splitlines() if line.startswith("inotify wd:"))
    return [line for line in lines if line.split()[3].removeprefix("sdev:") not in cgroups]


def cgroup_devices() -> set[str]:
    """The devices of all cgroup hierarchies, as proc_pid_fdinfo(5) writes them."""
    devices = set()
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.startswith("cgroup"):
            major, minor = map(int, before.split()[2].split(":"))
            devices.add(f"{major << 20 | minor:x}")
    return devices


def inner(process: subprocess.Popen[bytes]) -> int:
    """The pid, on the host, of what nsenter or unshare runs as its child; 0 when there is none."""
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    except FileNotFoundError:
        return 0
    return int((children.split() or ["0"])[0])


def command_of(process: Path) -> str:
    """What a process, given by its folder in a /proc, calls itself; empty when it is gone."""
    try:
        return (process / "comm").read_text().strip()
    except OSError:
        return ""


def end(process: subprocess.Popen[bytes], numbers: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGKILL)) -> None:
    """Ask what nsenter runs to end, and wait for both; by the next signal when it does not."""
    for number in numbers:
        if pid := inner(process):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
            return
    raise TimeoutError(f"{process.args!r} does not end")


def write_image(path: Path) -> None:
    """The shared root as an image in the form of ``docker save``, under two names: for containers and sandboxes."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.add(rootfs_template(), arcname=".")
    digest = hashlib.sha256(layer.getvalue()).hexdigest()
    image = {
        "architecture": ARCHITECTURES[platform.machine()],
        "os": "linux",
        "config": {"Cmd": list(INIT), "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    config = json.dumps(image).encode()
    name = hashlib.sha256(config).hexdigest()
    manifest = [{"Config": f"{name}.json", "RepoTags": [IMAGE, PAUSE], "Layers": [f"{digest}/layer.tar"]}]
    files = {
        f"{name}.json": config,
        f"{digest}/layer.tar": layer.getvalue(),
        "manifest.json": json.dumps(manifest).encode(),
    }
    with tarfile.open(path, "w") as tar:
        for member, data in files.items():
            info = tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
