"""The runtimes that are commands for people: docker with its daemon, podman without one."""

from __future__ import annotations

import secrets
from typing import Final

from tests.e2e.place import IMAGE
from tests.e2e.runtime import Runtime, Shape, above, answers

LIMITS: Final = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096", "--pids-limit=0")
"""podman's own defaults raise limits, which takes a capability that a container or a small machine has not."""


class Docker(Runtime):
    """dockerd with its own containerd, on a unix socket, without networks."""

    programs = ("dockerd", "docker", "containerd", "iptables")
    scheme = "docker"
    default_cgroup = "/docker/{id}"

    def start(self) -> None:
        home = self.place.folder / "docker"
        home.mkdir(exist_ok=True)
        self._socket = home / "docker.sock"
        (home / "daemon.json").write_text("{}")
        service = self.place.service(
            *("dockerd", f"--host=unix://{self._socket}", f"--config-file={home / 'daemon.json'}"),
            *(f"--data-root={home / 'data'}", f"--exec-root={home / 'exec'}", f"--pidfile={home / 'pid'}"),
            *("--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false"),
            f"--cgroup-parent={self.place.cgroup}/docker",
            ready=self._answers,
        )
        self._stack.enter_context(service)
        self.call("load", "--quiet", f"--input={self.place.image}")

    def _run(self, shape: Shape) -> str:
        pids = ["--pid=host"] if shape.pids == "host" else []
        return self.call(
            *("run", "--detach", "--network=none", f"--cgroup-parent={above(shape.cgroup)}"),
            *(*pids, *volume_flags(shape), IMAGE, *shape.init),
        )

    def pid(self, container: str) -> int:
        return int(self.call("inspect", "--format={{.State.Pid}}", container))

    def exec(self, container: str, *argv: str) -> None:
        self.call("exec", container, *argv)

    def exec_detached(self, container: str, *argv: str) -> None:
        self.call("exec", "--detach", container, *argv)

    def _remove(self, container: str) -> None:
        self.call("rm", "--force", container)

    def restart(self, container: str) -> None:
        """Kill the container and start it again under the same id."""
        self.call("restart", "--time=0", container)

    def command(self, *arguments: str) -> list[str]:
        """A command line of docker's client, for the place."""
        return ["docker", f"--host=unix://{self._socket}", *arguments]

    def call(self, *arguments: str) -> str:
        """Call docker's client; returns what it says."""
        return self.place.call(*self.command(*arguments))

    def _answers(self) -> bool:
        return self._socket.exists() and answers(lambda: self.call("version"))


class Podman(Runtime):
    """podman with runc; there is no daemon, only a conmon for each container."""

    programs = ("podman", "conmon", "runc")
    scheme = "podman"
    default_cgroup = "/libpod_parent/libpod-{id}"

    def start(self) -> None:
        self._podman("load", "--quiet", f"--input={self.place.image}")

    def _run(self, shape: Shape) -> str:
        identity = self.place.folder / f"podman-{secrets.token_hex(4)}.cid"
        pids = ["--pid=host"] if shape.pids == "host" else []
        # conmon stays behind and keeps what it inherits: the id comes in a file.
        self.place.call_detached(
            *self._command("run", "--detach", "--network=none", f"--cidfile={identity}", *LIMITS),
            *(f"--cgroup-parent={above(shape.cgroup)}", *pids, *volume_flags(shape), IMAGE, *shape.init),
        )
        return identity.read_text().strip()

    def pid(self, container: str) -> int:
        return int(self._podman("inspect", "--format={{.State.Pid}}", container))

    def exec(self, container: str, *argv: str) -> None:
        self._podman("exec", container, *argv)

    def exec_detached(self, container: str, *argv: str) -> None:
        self.place.call_detached(*self._command("exec", "--detach", container, *argv))

    def _remove(self, container: str) -> None:
        self._podman("rm", "--force", "--time=0", container)

    def _command(self, *arguments: str) -> list[str]:
        # podman takes no long path for these two; /run is the place's own.
        folders = (f"--root={self.place.folder / 'podman'}", "--runroot=/run/podman", "--tmpdir=/run/podman-tmp")
        runtime = ("--cgroup-manager=cgroupfs", "--events-backend=file", f"--runtime={self.place.runc}")
        return ["podman", *folders, *runtime, *arguments]

    def _podman(self, *arguments: str) -> str:
        return self.place.call(*self._command(*arguments))


def volume_flags(shape: Shape) -> list[str]:
    """The volumes of a container as both clients take them."""
    return [f"--volume={volume.source}:{volume.target}" for volume in shape.volumes]
