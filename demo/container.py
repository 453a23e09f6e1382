"""One real container without a daemon: runc, an OCI bundle, a busybox root.

Facts that shaped this file:

- ``runc run --detach`` hands its stdout and stderr to the container, so a pipe there would stay open for as long as the
  container runs. They go to /dev/null, and what runc itself has to say goes to ``--log``.
- Without ``linux.resources`` nothing but the container's cgroup is asked of the kernel: that works on v1, hybrid and
  v2, also where controllers are missing, and starts faster.
- runc leaves the cgroups above the container's own behind. The parent is therefore named after our process and removed
  by us, in every hierarchy.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, Self

from demo.rootfs import find_busybox

CGROUPS: Final = Path("/sys/fs/cgroup")
INIT: Final = ("/bin/sleep", "3600")  # should nobody be left to remove it, it goes by itself
STOP_TIMEOUT_S: Final = 10.0
CAPABILITIES: Final = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_KILL",
    "CAP_SETUID",
    "CAP_SETGID",
)


class ContainerError(Exception):
    """A container could not be started, entered or stopped; the text is what the runtime said."""


def missing_for_runc() -> str:
    """Why no runc container can run here, in words for a skip or a message; empty when one can."""
    if os.geteuid() != 0:
        return "needs root: containers are namespaces and cgroups"
    if shutil.which("runc") is None:
        return "needs runc (Debian: apt-get install runc)"
    if find_busybox() is None:
        return "needs a static busybox (Debian: apt-get install busybox-static)"
    return ""


class Container(ABC):
    """A running container: its id, its init process on the host, its root. Leaving the context removes all of it."""

    scheme: ClassVar[str]

    def __init__(self, template: Path, *, cgroup: str = "", init: Sequence[str] = INIT) -> None:
        """Nothing runs yet. ``template`` is a root filesystem to copy; ``cgroup`` may hold ``{id}``."""
        self._init: Final = init
        self.id: Final = secrets.token_hex(32)
        self.cgroup: Final = (cgroup or f"/argusd-{os.getpid()}/{{id}}").format(id=self.id)
        self.pid = 0
        self._template = template
        self._folder = Path()

    @property
    def uri(self) -> str:
        """The id with the name of what runs the container before it, as a kubelet writes ids."""
        return self.uri_as(self.scheme)

    def uri_as(self, scheme: str) -> str:
        """The same id under another runtime's scheme, e.g. ``cri-o``."""
        return f"{scheme}://{self.id}"

    @property
    def rootfs(self) -> Path:
        """The container's root as a folder of the host: the same inodes, without the container's mounts."""
        return self._folder / "rootfs"

    @property
    def root(self) -> Path:
        """The container's root through its init process, mounts included; gone when the container has ended."""
        return Path(f"/proc/{self.pid}/root")

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="argusd-container-"))
        try:
            shutil.copytree(self._template, self.rootfs, symlinks=True)
            self.pid = self._start(self._folder)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill the container and remove its cgroups and files. May be called twice."""
        if self._folder == Path():
            return
        self._remove()
        self._remove_cgroups()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = Path()

    def kill(self) -> None:
        """SIGKILL the init process, which ends the container, and wait until it is gone."""
        kill_and_wait(self.pid)

    def try_exec(self, argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run a command inside, to its end, whatever that is."""
        return subprocess.run(
            [*self._enter_command(), *argv], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )

    def exec(self, argv: Sequence[str]) -> str:
        """Run a command inside, to its end; returns its stdout. Raises ContainerError when it fails."""
        done = self.try_exec(argv)
        if done.returncode != 0:
            raise ContainerError(f"{' '.join(argv)}: exit {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def _remove_cgroups(self) -> None:
        # Only directories below our own first component, deepest first; one that is still in use stays.
        parts = Path(self.cgroup.lstrip("/")).parts
        for hierarchy in (CGROUPS, *(path for path in CGROUPS.iterdir() if path.is_dir())):
            for depth in range(len(parts), 0, -1):
                try:
                    hierarchy.joinpath(*parts[:depth]).rmdir()
                except FileNotFoundError:
                    continue  # the runtime has removed this one
                except OSError:
                    break

    @abstractmethod
    def _start(self, folder: Path) -> int:
        """Start the container with ``folder/rootfs``; returns the pid of its init on the host."""

    @abstractmethod
    def _remove(self) -> None:
        """Make sure that the container does not run and that its runtime has forgotten it."""

    @abstractmethod
    def _enter_command(self) -> list[str]:
        """What to put before a command to run it inside."""


class RuncContainer(Container):
    """A container of Debian's runc, in its own pid, mount, network, ipc and uts namespaces."""

    scheme = "runc"

    def _start(self, folder: Path) -> int:
        (folder / "config.json").write_text(json.dumps(oci_spec(self.cgroup, self._init)))
        pid_file = folder / "init.pid"
        self._runc("run", "--detach", "--bundle", str(folder), "--pid-file", str(pid_file), self.id)
        return int(pid_file.read_text())

    def _remove(self) -> None:
        subprocess.run(
            [*self._runc_command(), "delete", "--force", self.id],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )

    def _enter_command(self) -> list[str]:
        return [*self._runc_command(), "exec", self.id]

    def _runc_command(self) -> list[str]:
        return ["runc", "--root", str(self._folder / "state"), "--log", str(self._folder / "runc.log")]

    def _runc(self, *arguments: str) -> None:
        null = subprocess.DEVNULL
        done = subprocess.run([*self._runc_command(), *arguments], stdin=null, stdout=null, stderr=null, check=False)
        if done.returncode != 0:
            log = self._folder / "runc.log"
            said = log.read_text().strip() if log.exists() else "nothing in its log"
            raise ContainerError(f"runc {arguments[0]}: exit {done.returncode}: {said}")


class ProcessContainer(Container):
    """The next best thing where there is no runc: a process in its own pid and mount namespace, root and cgroup."""

    scheme = "process"

    def _start(self, folder: Path) -> int:
        hierarchy = self._writable_hierarchy()
        cgroup = hierarchy / self.cgroup.lstrip("/")
        cgroup.mkdir(parents=True)
        # The shell enters the cgroup before it becomes unshare, so that all that follows is born in it.
        enter = ("/bin/sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', str(cgroup))
        unshare = ("unshare", "--mount", "--pid", "--fork", "--kill-child", f"--root={folder / 'rootfs'}", "--wd=/")
        with (folder / "unshare.log").open("wb") as log:
            self._unshare = subprocess.Popen(
                [*enter, *unshare, *self._init], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log
            )
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children")
        poller = select.poll()
        for _ in range(1000):
            try:
                pids = children.read_text().split()
                if pids and Path(f"/proc/{pids[0]}/comm").read_text() == f"{Path(self._init[0]).name}\n":
                    return int(pids[0])
            except OSError:
                pass  # not there yet, or between fork and exec
            if self._unshare.poll() is not None:
                raise ContainerError(f"unshare: {(folder / 'unshare.log').read_text().strip()}")
            poller.poll(5)
        raise ContainerError("unshare started no process within 5 s")

    def _writable_hierarchy(self) -> Path:
        for hierarchy in (CGROUPS, CGROUPS / "unified", CGROUPS / "systemd", CGROUPS / "pids"):
            if (hierarchy / "cgroup.procs").exists() and os.access(hierarchy, os.W_OK):
                return hierarchy
        raise ContainerError("no cgroup hierarchy that can be written")

    def _remove(self) -> None:
        if self.pid:
            kill_and_wait(self.pid)
        if hasattr(self, "_unshare"):
            self._unshare.kill()
            self._unshare.wait()

    def _enter_command(self) -> list[str]:
        space = f"--target={self.pid}"
        # nsenter looks for the command inside, with our PATH: env gives it the container's.
        return ["nsenter", space, "--mount", "--pid", "--root", "--wd", "/bin/busybox", "env", "-i", "PATH=/bin"]


def kill_and_wait(pid: int) -> None:
    """SIGKILL one process and wait until it has ended (a zombie has); one that is gone already is no error."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        if not poller.poll(STOP_TIMEOUT_S * 1000):
            raise ContainerError(f"process {pid} still runs {STOP_TIMEOUT_S:.0f} s after SIGKILL")
    except ProcessLookupError:
        pass
    finally:
        os.close(pidfd)


def oci_spec(cgroup: str, init: Sequence[str] = INIT) -> dict[str, Any]:
    """A small config.json (OCI runtime specification 1.0.2): what a shell and its file tools need."""
    capabilities = list(CAPABILITIES)
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": list(init),
            "env": ["PATH=/bin", "HOME=/root"],
            "cwd": "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": False},
        "hostname": "argusd-demo",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": [{"type": kind} for kind in ("pid", "mount", "network", "ipc", "uts")],
        },
    }
