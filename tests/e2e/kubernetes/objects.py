"""The objects that the tests have the cluster make."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from demo.container import INIT
from tests.daemon import ROOT
from tests.e2e.kubernetes.api import Object
from tests.e2e.place import IMAGE

VERSION: Final = re.search(r'"(.+)"', (ROOT / "argusd" / "__init__.py").read_text().partition("__version__")[2])[1]  # type: ignore[index]
PORT: Final = 50051
CERTIFICATES: Final = "/usr/lib/ssl/certs"


def container(name: str = "app", *argv: str, **fields: Any) -> Object:
    """A container of the tests' image, one that sleeps if nothing else is said."""
    return {"name": name, "image": IMAGE, "command": list(argv or INIT), **fields}


def shell(name: str, script: str, **fields: Any) -> Object:
    """A container that runs a script."""
    return container(name, "sh", "-c", script, **fields)


def pod(name: str, *containers: Object, labels: dict[str, str] | None = None, **spec: Any) -> Object:
    """A pod that ends at once when it is deleted: a process 1 that sleeps would ignore SIGTERM."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels or {}},
        "spec": pod_spec(*containers, **spec),
    }


def pod_spec(*containers: Object, **spec: Any) -> Object:
    """What a pod, or the template of many, consists of."""
    return {"terminationGracePeriodSeconds": 0, "containers": list(containers or (container(),)), **spec}


def deployment(name: str, replicas: int, *containers: Object, **spec: Any) -> Object:
    """Pods that carry the label ``app`` with the deployment's name."""
    labels = {"app": name}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod_spec(*containers, **spec)},
        },
    }


def service(name: str) -> Object:
    """The headless service by whose endpoints a controller finds the daemons."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": f"{name}-svc"},
        "spec": {
            "selector": {"daemon": name},
            "clusterIP": "None",
            "ports": [{"name": "grpc", "port": PORT, "targetPort": "grpc"}],
        },
    }


def daemon_set(name: str, *argv: str, volumes: dict[str, tuple[str, Object]] | None = None, **fields: Any) -> Object:
    """A DaemonSet of argusd or janusd; ``volumes`` are by name, each where it is mounted and what it is.

    ``fields`` replace those of the container. With no more than these it has no probe and no right of its own.
    """
    mounted = {"cgroup": ("/sys/fs/cgroup", host_path("/sys/fs/cgroup")), **(volumes or {})}
    labels = {"daemon": name}
    spec = {
        "hostPID": True,
        "containers": [
            {
                "name": name,
                "image": f"localhost/{name}:{VERSION}",
                "command": list(argv or (f"/{name}",)),
                "ports": [{"name": "grpc", "containerPort": PORT}],
                "volumeMounts": [{"name": key, "mountPath": path} for key, (path, _) in mounted.items()],
                **fields,
            }
        ],
        "volumes": [{"name": key, **volume} for key, (_, volume) in mounted.items()],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": name, "labels": labels},
        "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": spec}},
    }


def exec_probes() -> dict[str, Object]:
    """The probes as the daemons' first manifests had them."""
    probe = {"exec": {"command": ["/bin/grpc_health_probe", "-addr", f":{PORT}"]}}
    return {
        "livenessProbe": {**probe, "initialDelaySeconds": 10},
        "readinessProbe": {**probe, "initialDelaySeconds": 5},
    }


def grpc_probes(port: int = PORT) -> dict[str, Object]:
    """The probes that a kubelet makes itself."""
    probe = {"grpc": {"port": port}, "periodSeconds": 2}
    return {"startupProbe": {**probe, "failureThreshold": 30}, "livenessProbe": probe, "readinessProbe": probe}


def rights(*capabilities: str) -> Object:
    """A security context with these capabilities beside the runtime's own."""
    return {"capabilities": {"add": list(capabilities)}}


def original(name: str, *, secure: bool) -> Object:
    """The DaemonSet that the original daemons came with: these fields, and none that came later.

    argusd was privileged and had the sockets of docker; the secure variant takes its certificates from a ConfigMap, and
    never says ``-tls``.
    """
    files = {"tlscafile": "ca", "tlscertfile": "cert", "tlskeyfile": "key"}
    volumes = {}
    if name == "argusd":
        for file in ("docker.pid", "docker.sock"):
            volumes[file.replace(".", "")] = f"/var/run/{file}", host_path(f"/var/run/{file}")
    fields: dict[str, Any] = exec_probes()
    if secure:
        volumes["config"] = CERTIFICATES, {"configMap": {"name": f"{name}-config"}}
        fields["command"] = [f"/{name}"]
        for flag, file in files.items():
            fields["command"] += [f"-{flag}", f"{CERTIFICATES}/{file}.pem"]
    fields["securityContext"] = {"privileged": True} if name == "argusd" else rights("SYS_ADMIN", "SYS_PTRACE")
    made = daemon_set(name, volumes=volumes, **fields)
    if not secure:
        del made["spec"]["template"]["spec"]["containers"][0]["command"]  # what the image says
    return made


def host_path(path: str | Path) -> Object:
    """A folder of the node."""
    return {"hostPath": {"path": str(path)}}


def config_map(name: str, **data: str) -> Object:
    """What files of a volume may hold."""
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def secret(name: str, **data: str) -> Object:
    """The same, for what only some may read."""
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data}
