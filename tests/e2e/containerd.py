"""containerd: driven by ctr, and as a kubelet drives it."""

from __future__ import annotations

import json
import secrets
import uuid
from pathlib import Path
from typing import Any, Final

import grpc

from tests.e2e.place import IMAGE, PAUSE, RuntimeFailedError
from tests.e2e.runtime import Runtime, Shape, above, answers

RPC_TIMEOUT_S: Final = 30.0


class Containerd(Runtime):
    """containerd, driven with ctr."""

    programs = ("containerd", "ctr", "runc")
    scheme = "containerd"
    default_cgroup = "/default/{id}"
    namespace = "default"

    def start(self) -> None:
        home = self.place.folder / self.namespace
        home.mkdir(exist_ok=True)
        self.socket = home / "containerd.sock"
        (home / "cni").mkdir(exist_ok=True)
        (home / "cni" / "10-lo.conflist").write_text(
            json.dumps({"cniVersion": "0.4.0", "name": "lo", "plugins": [{"type": "loopback"}]})
        )
        (home / "config.toml").write_text(containerd_config(home, self.socket, self.place.runc))
        self._stack.enter_context(
            self.place.service("containerd", f"--config={home / 'config.toml'}", ready=self._answers)
        )
        self._ctr("images", "import", str(self.place.image))

    def _run(self, shape: Shape) -> str:
        options = [f"--cgroup={shape.cgroup.format(id=shape.id)}", f"--runc-binary={self.place.runc}"]
        for source, target in shape.volumes:
            options += ["--mount", f"type=bind,src={source},dst={target},options=rbind:rw"]
        self.place.call_detached(*self._command("run", "--detach", *options, IMAGE, shape.id, *shape.init))
        return shape.id

    def pid(self, container: str) -> int:
        rows = [line.split() for line in self._ctr("tasks", "list").splitlines()]
        return next(int(row[1]) for row in rows if row[0] == container)

    def exec(self, container: str, *argv: str) -> None:
        self._ctr("tasks", "exec", f"--exec-id={secrets.token_hex(8)}", container, *argv)

    def exec_detached(self, container: str, *argv: str) -> None:
        identity = f"--exec-id={secrets.token_hex(8)}"
        self.place.call_detached(*self._command("tasks", "exec", "--detach", identity, container, *argv))

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

    default_cgroup = "/kubepods/burstable/pod7d3b0a5e-1f3c-4c43-9d0a-4a1d6b7f2c11/{id}"
    namespace = "k8s.io"

    def start(self) -> None:
        super().start()
        self._messages, services = grpc.protos_and_services("tests/e2e/cri.proto")
        channel = grpc.insecure_channel(f"unix://{self.socket}")
        self._stack.callback(channel.close)
        self._service = services.RuntimeServiceStub(channel)
        self._sandboxes: dict[str, tuple[str, Any, Shape]] = {}
        self._execs: list[Any] = []

    def _run(self, shape: Shape) -> str:
        messages = self._messages
        mode = {"own": messages.CONTAINER, "pod": messages.POD, "host": messages.NODE}[shape.pids]
        # The node's network: no network plugin is asked for one.
        spaces = messages.NamespaceOption(network=messages.NODE, pid=mode, ipc=messages.POD)
        config = messages.PodSandboxConfig(
            metadata=messages.PodSandboxMetadata(
                name=f"pod-{secrets.token_hex(4)}", uid=str(uuid.uuid4()), namespace="default"
            ),
            linux=messages.LinuxPodSandboxConfig(
                cgroup_parent=pod_cgroup(shape.cgroup),
                security_context=messages.LinuxSandboxSecurityContext(namespace_options=spaces),
            ),
        )
        sandbox = self._rpc("RunPodSandbox", messages.RunPodSandboxRequest(config=config)).pod_sandbox_id
        return self._run_in(sandbox, config, shape, attempt=0)

    def replace(self, container: str) -> str:
        """Remove a container and start it again, as a kubelet restarts it: in the same sandbox, with a new id."""
        sandbox, config, shape = self._sandboxes.pop(container)
        self._rpc("RemoveContainer", self._messages.ContainerId(container_id=container))
        self._running.remove(container)
        again = self._run_in(sandbox, config, shape, attempt=1)
        self._running.add(again)
        return again

    def _run_in(self, sandbox: str, config: Any, shape: Shape, *, attempt: int) -> str:
        messages = self._messages
        spaces = config.linux.security_context.namespace_options
        wanted = messages.ContainerConfig(
            metadata=messages.ContainerMetadata(name="app", attempt=attempt),
            image=messages.ImageSpec(image=IMAGE),
            command=shape.init,
            mounts=[messages.Mount(container_path=target, host_path=str(source)) for source, target in shape.volumes],
            linux=messages.LinuxContainerConfig(
                security_context=messages.LinuxContainerSecurityContext(namespace_options=spaces)
            ),
        )
        request = messages.CreateContainerRequest(pod_sandbox_id=sandbox, config=wanted, sandbox_config=config)
        container: str = self._rpc("CreateContainer", request).container_id
        self._rpc("StartContainer", messages.ContainerId(container_id=container))
        self._sandboxes[container] = sandbox, config, shape
        return container

    def pid(self, container: str) -> int:
        request = self._messages.ContainerStatusRequest(container_id=container, verbose=True)
        return int(json.loads(self._rpc("ContainerStatus", request).info["info"])["pid"])

    def exec(self, container: str, *argv: str) -> None:
        request = self._messages.ExecSyncRequest(container_id=container, cmd=argv, timeout=int(RPC_TIMEOUT_S))
        answer = self._rpc("ExecSync", request)
        if answer.exit_code != 0:
            raise RuntimeFailedError(f"{argv}: exit {answer.exit_code}: {answer.stderr.decode().strip()}")

    def exec_detached(self, container: str, *argv: str) -> None:
        # It ends with the container. A call that nobody holds is given up.
        request = self._messages.ExecSyncRequest(container_id=container, cmd=argv)
        self._execs.append(self._service.ExecSync.future(request))

    def _remove(self, container: str) -> None:
        sandbox = self._messages.PodSandboxId(pod_sandbox_id=self._sandboxes.pop(container)[0])
        self._rpc("RemoveContainer", self._messages.ContainerId(container_id=container))  # kills it first
        self._rpc("StopPodSandbox", sandbox)
        self._rpc("RemovePodSandbox", sandbox)

    def _rpc(self, method: str, request: Any) -> Any:
        return getattr(self._service, method)(request, timeout=RPC_TIMEOUT_S, wait_for_ready=True)


def pod_cgroup(cgroup: str) -> str:
    """The cgroup that a kubelet names for a pod, from that of a container in it.

    "<slice>:cri-containerd:<id>" is what becomes of a slice where the kubelet counts on systemd and runc does not.
    """
    return above(cgroup) + f"/{cgroup.rpartition('/')[2].partition(':')[0]}" if ":" in cgroup else above(cgroup)


def containerd_config(home: Path, socket: Path, runc: str) -> str:
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
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      BinaryName = "{runc}"
  [plugins."io.containerd.grpc.v1.cri".cni]
    conf_dir = "{home / "cni"}"
"""
