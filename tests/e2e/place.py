"""Where the runtimes live during a test run: a folder, a private mount namespace, and one image that nobody downloads.

Every runtime is started inside the namespace, so the overlay mounts that it makes are never seen by the host and end
with it, and its /run is a tmpfs of its own. The pid namespace and the cgroup hierarchies are the host's, as on a node.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import platform
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Self

from demo.container import CGROUPS, INIT, kill_and_wait
from tests.containers import rootfs_template

IMAGE: Final = "localhost/argusd-test:1"
PAUSE: Final = "localhost/argusd-pause:1"
ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
STEP_S: Final = 0.05
STOP_TIMEOUT_S: Final = 20.0


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
    """The folder and the namespace. Leaving the context ends what was started in it."""

    def __init__(self, folder: Path) -> None:
        self.folder: Final = folder
        self.cgroup: Final = f"/argusd-e2e-{os.getpid()}"
        self.image: Final = folder / "image.tar"

    def __enter__(self) -> Self:
        # cat ends with its stdin: should this process be killed, the holder goes, and the namespace with it.
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        ours = Path("/proc/self/ns/mnt").readlink()
        namespace = Path(f"/proc/{self._holder.pid}/ns/mnt")
        until(lambda: namespace.readlink() != ours, 5, "a mount namespace")
        self._namespace = namespace.readlink()
        self.call("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
        write_image(self.image)
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self._left_over():
            kill_and_wait(pid)
        self._holder.communicate()
        self._remove_cgroups()

    def enter(self, *argv: str) -> list[str]:
        """A command line that runs ``argv`` in the namespace."""
        return ["nsenter", f"--target={self._holder.pid}", "--mount", "--", *argv]

    def call(self, *argv: str) -> str:
        """Run a command in the namespace, to its end; returns its stdout, raises RuntimeFailedError."""
        done = subprocess.run(self.enter(*argv), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeFailedError(f"{' '.join(argv)}: exit {done.returncode}: {done.stderr.strip()}")
        return done.stdout.strip()

    def call_detached(self, *argv: str) -> None:
        """Run a command that leaves a process behind, which would keep a pipe to us open."""
        log = self.folder / f"{argv[0]}.log"
        with log.open("wb") as output:
            done = subprocess.run(
                self.enter(*argv), stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False
            )
        if done.returncode != 0:
            raise RuntimeFailedError(f"{' '.join(argv)}: exit {done.returncode}: {log.read_text().strip()}")

    @contextlib.contextmanager
    def service(self, *argv: str, ready: Callable[[], bool]) -> Iterator[None]:
        """Run a daemon in the namespace for as long as the context lasts, entered when ``ready`` holds."""
        log = self.folder / f"{argv[0]}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(self.enter(*argv), stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            try:
                until(lambda: process.poll() is not None or ready(), 30, argv[0])
            except TimeoutError as late:
                raise RuntimeFailedError(f"{late}; its log ends: {log.read_text()[-2000:]}") from late
            if process.returncode is not None:
                raise RuntimeFailedError(f"{argv[0]}: exit {process.returncode}: {log.read_text()[-2000:]}")
            yield
        finally:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _left_over(self) -> list[int]:
        """Who is still in our namespace (the holder aside): it was made by us, so only what we started can be."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # ended meanwhile
                if (path / "ns" / "mnt").readlink() == self._namespace and int(path.name) != self._holder.pid:
                    found.append(int(path.name))
        return found

    def _remove_cgroups(self) -> None:
        for hierarchy in (CGROUPS, *(path for path in CGROUPS.iterdir() if path.is_dir())):
            for folder, _, _ in os.walk(hierarchy / self.cgroup.lstrip("/"), topdown=False):
                with contextlib.suppress(OSError):  # a cgroup that a zombie still holds stays
                    Path(folder).rmdir()


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
