"""Bare OCI runtimes, on bundles of our own making."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from demo.container import oci_spec
from tests.containers import rootfs_template
from tests.e2e.runtime import Runtime, Shape


class Oci(Runtime):
    """A bare OCI runtime. It puts a container wherever it is told, and so stands for those that would tell it so."""

    def start(self) -> None:
        pass  # no daemon, no image

    def _run(self, shape: Shape) -> str:
        container = shape.id
        bundle = self._bundle(container)
        shutil.copytree(rootfs_template(), bundle / "rootfs", symlinks=True)
        spec = oci_spec(shape.cgroup.format(id=container), shape.init)
        spec["mounts"] += [
            {"destination": volume.target, "type": "bind", "source": str(volume.source), "options": ["rbind"]}
            for volume in shape.volumes
        ]
        if shape.pids == "host":
            spec["linux"]["namespaces"].remove({"type": "pid"})
        (bundle / "config.json").write_text(json.dumps(spec))
        self.place.call_detached(*self._command("run", "--detach", f"--bundle={bundle}", container))
        return container

    def pid(self, container: str) -> int:
        state: dict[str, Any] = json.loads(self.place.call(*self._command("state", container)))
        return int(state["pid"])

    def exec(self, container: str, *argv: str) -> None:
        self.place.call(*self._command("exec", container, *argv))

    def exec_detached(self, container: str, *argv: str) -> None:
        self.place.call_detached(*self._command("exec", "--detach", container, *argv))

    def _remove(self, container: str) -> None:
        self.place.call(*self._command("delete", "--force", container))
        shutil.rmtree(self._bundle(container))

    def _bundle(self, container: str) -> Path:
        return self.place.folder / f"{self.scheme}-{container}"

    def _command(self, *arguments: str) -> list[str]:
        return [self.scheme, f"--root={self.place.folder / self.scheme}", *arguments]


class Runc(Oci):
    """runc alone."""

    programs = ("runc",)
    scheme = "runc"
    default_cgroup = "/runc/{id}"


class Crun(Oci):
    """crun alone."""

    programs = ("crun",)
    scheme = "crun"
    default_cgroup = "/crun/{id}"

    def _command(self, *arguments: str) -> list[str]:
        command = super()._command(*arguments)
        if self.place.layout != "hybrid":
            return command
        # crun refuses v1 beside v2: for its own life, and for no one else, the v2 mount is gone.
        hide = 'umount --lazy /sys/fs/cgroup/unified && exec "$@"'
        return ["unshare", "--mount", "sh", "-c", hide, "sh", *command]
