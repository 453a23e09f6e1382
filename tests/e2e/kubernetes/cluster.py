"""A Kubernetes of one node: etcd, API server, controllers, scheduler, containerd and a kubelet, in a place of its own.

Everything runs in the namespaces of a Place, and so ends with it. What is the machine's are the cgroups below one
folder, which the place removes, a bridge to the pods, which is removed here, and what a kubelet and the bridge set in
/proc/sys, which is put back.

There is no kube-proxy: pods and the API server are reached by their own addresses, services by their endpoints.
"""

from __future__ import annotations

import ipaddress
import json
import shutil
import socket
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Self

from cryptography import x509

from demo.container import missing_for_runc
from tests.daemon import ROOT
from tests.e2e.kubernetes.api import Api, ApiError
from tests.e2e.place import PAUSE, Place, until
from tests.e2e.runtime import answers
from tests.grpc.authority import Authority

PROGRAMS: Final = ROOT / "build" / "kubernetes"
IMAGES: Final = tuple(ROOT / "build" / f"{name}-image.tar" for name in ("argusd", "janusd"))
NODE: Final = "node-1"
BRIDGE: Final = "argusd-k8s"
GATEWAY: Final = "10.88.7.1"
PODS: Final = "10.88.7.0/24"
PLUGINS: Final = Path("/usr/lib/cni")
START_TIMEOUT_S: Final = 60.0
SYSCTLS: Final = (
    *("vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops"),
    *("kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes", "net/ipv4/ip_forward"),
)
"""What a kubelet and the bridge's plugin set for the whole machine."""


def missing() -> str:
    """Why there can be no cluster here, in words for a skip; empty when there can."""
    if reason := missing_for_runc():
        return reason
    programs = [name for name in ("etcd", "containerd", "ctr", "ip") if shutil.which(name) is None]
    files = [path for path in (PLUGINS / "bridge", PROGRAMS / "kubernetes", *IMAGES) if not path.exists()]
    absent = [*programs, *map(str, files)]
    return f"needs {', '.join(absent)}: make e2e-kubernetes brings them" if absent else ""


class Cluster:
    """Use as a context: inside it the node is Ready and has the images."""

    def __init__(self, place: Place) -> None:
        self.place: Final = place
        self.folder: Final = place.folder
        self.port, self._etcd_port, self._peer_port, self._kubelet_port = free_ports(4)
        self._services: dict[str, ExitStack] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._stack = stack
            self._start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self, name: str) -> None:
        """Start one of the programs and wait until it answers."""
        command, ready = {
            "etcd": (self._etcd(), lambda: listens("127.0.0.1", self._etcd_port)),
            "kube-apiserver": (self._api_server(), self._api_is_ready),
            "kube-controller-manager": (self._client_of_api("kube-controller-manager"), lambda: True),
            "kube-scheduler": (self._client_of_api("kube-scheduler"), lambda: True),
            "containerd": ([f"--config={self.folder / 'containerd.toml'}"], self._containerd_answers),
            "kubelet": (self._kubelet(), lambda: listens(GATEWAY, self._kubelet_port)),
        }[name]
        program = str(PROGRAMS / name) if name.startswith("kube") else name
        service = ExitStack()
        service.enter_context(self.place.service(program, *command, ready=ready, timeout_s=START_TIMEOUT_S))
        self._services[name] = service

    def stop(self, name: str) -> None:
        """End one of the programs in order; containers outlive both containerd and the kubelet."""
        self._services.pop(name).close()

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        """Run kubectl to its end; returns its stdout, raises ApiError with what it said."""
        command = [str(PROGRAMS / "kubectl"), f"--kubeconfig={self.folder / 'admin.conf'}", *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=60)
        if done.returncode != 0:
            raise ApiError(f"kubectl {' '.join(arguments)}: exit {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def ctr(self, *arguments: str) -> str:
        """Run containerd's own client to its end."""
        return self.place.call("ctr", "--namespace=k8s.io", "--connect-timeout=1s", *arguments)

    def pid(self, container: str) -> int:
        """A container's init, in the place's pid namespace."""
        task = self.place.root / "run/containerd/io.containerd.runtime.v2.task/k8s.io" / container.partition("://")[2]
        return int((task / "init.pid").read_text())

    def root_of(self, container: str) -> Path:
        """The root of a container, as the node sees it."""
        return self.place.proc / str(self.pid(container)) / "root"

    def _start(self) -> None:
        self._keep_sysctls()
        self._furnish()
        self._make_bridge()
        self._make_cgroups()
        self._write_keys()
        self._write_configuration()
        self._stack.callback(self._stop_all)
        for name in ("etcd", "kube-apiserver", "containerd"):
            self.start(name)
        self._load_images()
        self.api = Api(self.port, self.folder)
        for name in ("kube-controller-manager", "kube-scheduler", "kubelet"):
            self.start(name)
        until(self.node_is_ready, START_TIMEOUT_S, "a node that is Ready")

    def _load_images(self) -> None:
        """Under their own names, and under those that manifests have before anybody puts in a registry's."""
        for image in (self.place.image, *IMAGES):
            self.ctr("images", "import", str(image))
        for name in self.ctr("images", "list", "--quiet").splitlines():
            if name.startswith("localhost/"):
                self.ctr("images", "tag", name, name.replace("localhost", "docker.io/library"))

    def _stop_all(self) -> None:
        """The clients first: nobody waits for a server that is gone. The containers end with the place."""
        for name in reversed(list(self._services)):
            self.stop(name)

    def _keep_sysctls(self) -> None:
        for name in SYSCTLS:
            path = Path("/proc/sys") / name
            self._stack.callback(path.write_text, path.read_text())

    def _furnish(self) -> None:
        """Folders of ours where the node's programs have theirs: nothing of the machine's is touched."""
        for name in ("lib", "log"):
            (self.folder / name).mkdir()
            self.place.call("mount", "--bind", str(self.folder / name), f"/var/{name}")
        (self.folder / "cni").mkdir()

    def _make_bridge(self) -> None:
        subprocess.run(["ip", "link", "delete", BRIDGE], capture_output=True, check=False)  # one that was left behind
        subprocess.run(["ip", "link", "add", BRIDGE, "type", "bridge"], check=True)
        self._stack.callback(subprocess.run, ["ip", "link", "delete", BRIDGE], check=True)
        subprocess.run(["ip", "address", "add", f"{GATEWAY}/24", "dev", BRIDGE], check=True)
        subprocess.run(["ip", "link", "set", BRIDGE, "up"], check=True)

    def _make_cgroups(self) -> None:
        """What a kubelet shall keep to must be there, in every hierarchy."""
        root = self.place.root / "sys/fs/cgroup"
        hierarchies = (
            [root] if (root / "cgroup.controllers").exists() else [path for path in root.iterdir() if path.is_dir()]
        )
        for hierarchy in hierarchies:
            (hierarchy / self.place.cgroup.lstrip("/")).mkdir(exist_ok=True)

    def _write_keys(self) -> None:
        authority = Authority("kubernetes")
        authority.write(self.folder, "ca")
        names = [x509.IPAddress(ipaddress.ip_address(address)) for address in ("127.0.0.1", GATEWAY)]
        authority.issue("kube-apiserver", names=names).write(self.folder, "api")
        authority.issue("service-accounts").write(self.folder, "accounts")
        for user, group in (("admin", "system:masters"), ("kubelet", "system:masters")):
            certificate, key = authority.issue(user, organization=group).write(self.folder, user)
            write_json(self.folder / f"{user}.conf", kubeconfig(self.port, self.folder / "ca.pem", certificate, key))

    def _write_configuration(self) -> None:
        network = {
            "cniVersion": "0.4.0",
            "name": "pods",
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": BRIDGE,
                    "isGateway": True,
                    "ipam": {"type": "host-local", "ranges": [[{"subnet": PODS}]], "dataDir": "/run/cni"},
                },
                {"type": "loopback"},
            ],
        }
        write_json(self.folder / "cni" / "10-pods.conflist", network)
        (self.folder / "containerd.toml").write_text(containerd_configuration(self.folder / "cni", self.place.runc))
        write_json(self.folder / "kubelet.json", self._kubelet_configuration())

    def _kubelet_configuration(self) -> dict[str, object]:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": False},
                "x509": {"clientCAFile": str(self.folder / "ca.pem")},
            },
            "address": GATEWAY,
            "port": self._kubelet_port,
            "healthzPort": 0,
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": self.place.cgroup,
            "enforceNodeAllocatable": [],
            "failSwapOn": False,
            "failCgroupV1": False,
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            # A full disk of the machine is no business of the tests.
            "evictionHard": {"memory.available": "1Mi", "nodefs.available": "0%", "imagefs.available": "0%"},
            "localStorageCapacityIsolation": False,
            "syncFrequency": "2s",
            "nodeStatusUpdateFrequency": "2s",
            "configMapAndSecretChangeDetectionStrategy": "Watch",
        }

    def _etcd(self) -> list[str]:
        clients, peers = (f"http://127.0.0.1:{port}" for port in (self._etcd_port, self._peer_port))
        return [
            "--data-dir=/var/lib/etcd",
            *(f"--listen-client-urls={clients}", f"--advertise-client-urls={clients}"),
            *(
                f"--listen-peer-urls={peers}",
                f"--initial-advertise-peer-urls={peers}",
                f"--initial-cluster=default={peers}",
            ),
            "--unsafe-no-fsync",  # nothing here is meant to outlive the machine
        ]

    def _api_server(self) -> list[str]:
        return [
            f"--etcd-servers=http://127.0.0.1:{self._etcd_port}",
            *("--bind-address=0.0.0.0", f"--advertise-address={GATEWAY}", f"--secure-port={self.port}"),
            *self._pair("--tls-cert-file", "--tls-private-key-file", "api"),
            f"--client-ca-file={self.folder / 'ca.pem'}",
            *self._pair("--kubelet-client-certificate", "--kubelet-client-key", "admin"),
            "--kubelet-preferred-address-types=InternalIP",
            "--service-account-issuer=https://kubernetes.default.svc",
            *self._pair("--service-account-key-file", "--service-account-signing-key-file", "accounts"),
            "--service-cluster-ip-range=10.96.0.0/16",
            "--authorization-mode=RBAC",
            "--allow-privileged=true",
        ]

    def _client_of_api(self, name: str) -> list[str]:
        options = [f"--kubeconfig={self.folder / 'admin.conf'}", "--leader-elect=false", "--secure-port=0"]
        if name == "kube-controller-manager":
            options += [
                f"--service-account-private-key-file={self.folder / 'accounts.key'}",
                f"--root-ca-file={self.folder / 'ca.pem'}",
            ]
        return options

    def _kubelet(self) -> list[str]:
        return [
            f"--kubeconfig={self.folder / 'kubelet.conf'}",
            f"--config={self.folder / 'kubelet.json'}",
            *(f"--hostname-override={NODE}", f"--node-ip={GATEWAY}"),
        ]

    def _pair(self, certificate: str, key: str, name: str) -> list[str]:
        return [f"{certificate}={self.folder / name}.pem", f"{key}={self.folder / name}.key"]

    def _api_is_ready(self) -> bool:
        try:
            return Api(self.port, self.folder).raw("GET", "/readyz") == b"ok"
        except (OSError, ApiError):
            return False

    def _containerd_answers(self) -> bool:
        return (self.place.root / "run/containerd/containerd.sock").exists() and answers(lambda: self.ctr("version"))

    def node_is_ready(self) -> bool:
        """Whether the kubelet says that the node takes pods."""
        nodes = self.api.list("nodes")
        conditions = [condition for node in nodes for condition in node["status"].get("conditions", ())]
        return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def free_ports(count: int) -> list[int]:
    """As many different ports that nobody listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("0.0.0.0", 0))  # noqa: S104  (the API server listens on all addresses)
        return [each.getsockname()[1] for each in sockets]


def listens(address: str, port: int) -> bool:
    """Whether somebody takes connections there."""
    try:
        socket.create_connection((address, port), timeout=1).close()
    except OSError:
        return False
    return True


def write_json(path: Path, value: object) -> None:
    """JSON is YAML too, which the programs read."""
    path.write_text(json.dumps(value, indent=1))


def kubeconfig(port: int, authority: Path, certificate: str, key: str) -> dict[str, object]:
    """Where the API server is, and who asks it."""
    cluster = {"server": f"https://127.0.0.1:{port}", "certificate-authority": str(authority)}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": cluster}],
        "users": [{"name": "test", "user": {"client-certificate": certificate, "client-key": key}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "current-context": "test",
    }


def containerd_configuration(networks: Path, runc: str) -> str:
    """containerd with its own folders where it likes them, which are the place's."""
    return f"""
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true  # lowering it takes a capability that a small machine has not
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      BinaryName = "{runc}"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{PLUGINS}"
    conf_dir = "{networks}"
"""
