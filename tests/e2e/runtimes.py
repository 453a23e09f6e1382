"""Real container runtimes, offline: what starts a container, what its init is, how to work in it, how to end it."""

from __future__ import annotations

import json
import secrets
import shutil
import uuid
from abc import ABC, abstractmethod
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar, Final, Self

import grpc

from demo.container import CGROUPS, INIT, missing_for_runc, oci_spec
from tests.containers import rootfs_template
from tests.e2e.place import IMAGE, PAUSE, Place, RuntimeFailedError

RPC_TIMEOUT_S: Final = 30.0
LIMITS: Final = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096", "--pids-limit=0")
"""podman's own defaults raise limits, which takes a capability that a container or a small machine has not."""


class Runtime(ABC):
    """One way to run containers. As a context it has its daemon running."""

    programs: ClassVar[tuple[str, ...]]
    scheme: ClassVar[str]

    def __init__(self, place: Place) -> None:
        self.place: Final = place
        self._stack = ExitStack()
        self._running: set[str] = set()

    @classmethod
    def missing(cls) -> str:
        """Why this runtime cannot be used here, in words for a skip; empty when it can."""
        if reason := missing_for_runc():
            return reason
        absent = [program for program in cls.programs if shutil.which(program) is None]
        return f"needs {', '.join(absent)}" if absent else ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self) -> str:
        """Start a container that sleeps; returns its id."""
        container = self._run()
        self._running.add(container)
        return container

    def runs(self, container: str) -> bool:
        """Whether it has not been removed yet."""
        return container in self._running

    def remove(self, container: str) -> None:
        """Kill the container and forget it."""
        self._remove(container)
        self._running.remove(container)

    def uri(self, container: str) -> str:
        """The id as a kubelet gives it."""
        return f"{self.scheme}://{container}"

    @abstractmethod
    def start(self) -> None:
        """Start the daemon that this runtime needs, if any, and give it the image."""

    @abstractmethod
    def pid(self, container: str) -> int:
        """The container's init as the runtime itself knows it, on the host."""

    @abstractmethod
    def exec(self, container: str, *argv: str) -> None:
        """Run a command in the container, to its end; raises when it fails."""

    @abstractmethod
    def _run(self) -> str: ...

    @abstractmethod
    def _remove(self, container: str) -> None: ...


class Docker(Runtime):
    """dockerd with its own containerd, on a unix socket, without networks."""

    programs = ("dockerd", "docker", "containerd", "iptables")
    scheme = "docker"

    def start(self) -> None:
        home = self.place.folder / "docker"
        home.mkdir()
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
        self._docker("load", "--quiet", f"--input={self.place.image}")

    def _run(self) -> str:
        return self._docker("run", "--detach", "--network=none", IMAGE)

    def pid(self, container: str) -> int:
        return int(self._docker("inspect", "--format={{.State.Pid}}", container))

    def exec(self, container: str, *argv: str) -> None:
        self._docker("exec", container, *argv)

    def _remove(self, container: str) -> None:
        self._docker("rm", "--force", container)

    def _docker(self, *arguments: str) -> str:
        return self.place.call("docker", f"--host=unix://{self._socket}", *arguments)

    def _answers(self) -> bool:
        return self._socket.exists() and answers(lambda: self._docker("version"))


class Podman(Runtime):
    """podman with runc; there is no daemon, only a conmon for each container."""

    programs = ("podman", "conmon", "runc")
    scheme = "podman"

    def start(self) -> None:
        self._podman("load", "--quiet", f"--input={self.place.image}")

    def _run(self) -> str:
        identity = self.place.folder / f"podman-{secrets.token_hex(4)}.cid"
        # conmon stays behind and keeps what it inherits: the id comes in a file.
        self.place.call_detached(
            *self._command("run", "--detach", "--network=none", f"--cidfile={identity}", *LIMITS),
            *(f"--cgroup-parent={self.place.cgroup}/podman", IMAGE),
        )
        return identity.read_text().strip()

    def pid(self, container: str) -> int:
        return int(self._podman("inspect", "--format={{.State.Pid}}", container))

    def exec(self, container: str, *argv: str) -> None:
        self._podman("exec", container, *argv)

    def _remove(self, container: str) -> None:
        self._podman("rm", "--force", "--time=0", container)

    def _command(self, *arguments: str) -> list[str]:
        home = self.place.folder / "podman"
        folders = (f"--root={home / 'root'}", f"--runroot={home / 'run'}", f"--tmpdir={home / 'tmp'}")
        return ["podman", *folders, "--cgroup-manager=cgroupfs", "--events-backend=file", "--runtime=runc", *arguments]

    def _podman(self, *arguments: str) -> str:
        return self.place.call(*self._command(*arguments))


class Oci(Runtime):
    """A bare OCI runtime on a bundle of our own making."""

    def start(self) -> None:
        pass  # no daemon, no image

    def _run(self) -> str:
        container = secrets.token_hex(32)
        bundle = self._bundle(container)
        shutil.copytree(rootfs_template(), bundle / "rootfs", symlinks=True)
        spec = oci_spec(f"{self.place.cgroup}/{self.scheme}/{container}")
        (bundle / "config.json").write_text(json.dumps(spec))
        self.place.call_detached(*self._command("run", "--detach", f"--bundle={bundle}", container))
        return container

    def pid(self, container: str) -> int:
        state: dict[str, Any] = json.loads(self.place.call(*self._command("state", container)))
        return int(state["pid"])

    def exec(self, container: str, *argv: str) -> None:
        self.place.call(*self._command("exec", container, *argv))

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


class Crun(Oci):
    """crun alone."""

    programs = ("crun",)
    scheme = "crun"

    def _command(self, *arguments: str) -> list[str]:
        command = super()._command(*arguments)
        if not (CGROUPS / "unified").is_mount():
            return command
        # crun refuses v1 beside v2: for its own life, and for no one else, the v2 mount is gone.
        hide = 'umount --lazy "$0" && exec "$@"'
        return ["unshare", "--mount", "sh", "-c", hide, str(CGROUPS / "unified"), *command]


class Containerd(Runtime):
    """containerd, driven with ctr."""

    programs = ("containerd", "ctr", "runc")
    scheme = "containerd"
    namespace = "default"

    def start(self) -> None:
        home = self.place.folder / self.namespace
        home.mkdir()
        self.socket = home / "containerd.sock"
        (home / "cni").mkdir()
        (home / "cni" / "10-lo.conflist").write_text(
            json.dumps({"cniVersion": "0.4.0", "name": "lo", "plugins": [{"type": "loopback"}]})
        )
        (home / "config.toml").write_text(containerd_config(home, self.socket))
        self._stack.enter_context(
            self.place.service("containerd", f"--config={home / 'config.toml'}", ready=self._answers)
        )
        self._ctr("images", "import", str(self.place.image))

    def _run(self) -> str:
        container = secrets.token_hex(32)
        cgroup = f"--cgroup={self.place.cgroup}/containerd/{container}"
        self.place.call_detached(*self._command("run", "--detach", cgroup, IMAGE, container))
        return container

    def pid(self, container: str) -> int:
        rows = [line.split() for line in self._ctr("tasks", "list").splitlines()]
        return next(int(row[1]) for row in rows if row[0] == container)

    def exec(self, container: str, *argv: str) -> None:
        self._ctr("tasks", "exec", f"--exec-id={secrets.token_hex(8)}", container, *argv)

    def _remove(self, container: str) -> None:
        self._ctr("tasks", "delete", "--force", container)
        self._ctr("containers", "delete", container)

    def _command(self, *arguments: str) -> list[str]:
        # The default of ten seconds to connect is also the time that a failed try takes.
        options = (f"--address={self.socket}", f"--namespace={self.namespace}", "--connect-timeout=1s")
        return ["ctr", *options, *arguments]

    def _ctr(self, *arguments: str) -> str:
        return self.place.call(*self._command(*arguments))

    def _answers(self) -> bool:
        return self.socket.exists() and answers(lambda: self._ctr("version"))


class Cri(Containerd):
    """containerd as a kubelet drives it: a sandbox, a container in it, a cgroup below kubepods."""

    namespace = "k8s.io"

    def start(self) -> None:
        super().start()
        self._messages, services = grpc.protos_and_services("tests/e2e/cri.proto")
        channel = grpc.insecure_channel(f"unix://{self.socket}")
        self._stack.callback(channel.close)
        self._service = services.RuntimeServiceStub(channel)
        self._sandboxes: dict[str, str] = {}

    def _run(self) -> str:
        messages = self._messages
        name, uid = f"pod-{secrets.token_hex(4)}", str(uuid.uuid4())
        # The node's network: no network plugin is asked for one.
        spaces = messages.NamespaceOption(network=messages.NODE, pid=messages.CONTAINER, ipc=messages.POD)
        config = messages.PodSandboxConfig(
            metadata=messages.PodSandboxMetadata(name=name, uid=uid, namespace="default"),
            linux=messages.LinuxPodSandboxConfig(
                cgroup_parent=f"{self.place.cgroup}/kubepods/burstable/pod{uid}",
                security_context=messages.LinuxSandboxSecurityContext(namespace_options=spaces),
            ),
        )
        sandbox = self._rpc("RunPodSandbox", messages.RunPodSandboxRequest(config=config)).pod_sandbox_id
        context = messages.LinuxContainerSecurityContext(namespace_options=spaces)
        wanted = messages.ContainerConfig(
            metadata=messages.ContainerMetadata(name="app"),
            image=messages.ImageSpec(image=IMAGE),
            command=INIT,
            linux=messages.LinuxContainerConfig(security_context=context),
        )
        request = messages.CreateContainerRequest(pod_sandbox_id=sandbox, config=wanted, sandbox_config=config)
        container: str = self._rpc("CreateContainer", request).container_id
        self._rpc("StartContainer", messages.ContainerId(container_id=container))
        self._sandboxes[container] = sandbox
        return container

    def pid(self, container: str) -> int:
        request = self._messages.ContainerStatusRequest(container_id=container, verbose=True)
        return int(json.loads(self._rpc("ContainerStatus", request).info["info"])["pid"])

    def exec(self, container: str, *argv: str) -> None:
        request = self._messages.ExecSyncRequest(container_id=container, cmd=argv, timeout=int(RPC_TIMEOUT_S))
        answer = self._rpc("ExecSync", request)
        if answer.exit_code != 0:
            raise RuntimeFailedError(f"{argv}: exit {answer.exit_code}: {answer.stderr.decode().strip()}")

    def _remove(self, container: str) -> None:
        sandbox = self._messages.PodSandboxId(pod_sandbox_id=self._sandboxes.pop(container))
        self._rpc("RemoveContainer", self._messages.ContainerId(container_id=container))  # kills it first
        self._rpc("StopPodSandbox", sandbox)
        self._rpc("RemovePodSandbox", sandbox)

    def _rpc(self, method: str, request: Any) -> Any:
        return getattr(self._service, method)(request, timeout=RPC_TIMEOUT_S, wait_for_ready=True)


RUNTIMES: Final[dict[str, type[Runtime]]] = {
    "runc": Runc,
    "crun": Crun,
    "podman": Podman,
    "docker": Docker,
    "containerd": Containerd,
    "cri": Cri,
}


def answers(call: Any) -> bool:
    """Whether a call of a runtime's client succeeds."""
    try:
        call()
    except RuntimeFailedError:
        return False
    return True


def containerd_config(home: Path, socket: Path) -> str:
    """A configuration that keeps all state below ``home`` and asks nothing of the network."""
    return f"""
version = 2
root = "{home / "root"}"
state = "{home / "state"}"
[grpc]
  address = "{socket}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{home / "opt"}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true  # lowering it takes a capability that a small machine has not
  [plugins."io.containerd.grpc.v1.cri".cni]
    conf_dir = "{home / "cni"}"
"""
