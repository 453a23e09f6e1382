"""A daemon is Ready soon after its start, under every kind of probe that manifests have."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Final

import pytest
from cryptography import x509

from tests.daemon import ROOT
from tests.e2e.kubernetes import objects
from tests.e2e.kubernetes.api import Object
from tests.e2e.kubernetes.cluster import Cluster
from tests.e2e.kubernetes.deployed import Applied, Deployed, is_ready
from tests.grpc.authority import Authority

READY_WITHIN_S: Final = 15.0
NAMES: Final = ("argusd", "janusd")


def certificates(*names: str) -> dict[str, str]:
    """Under these names: an authority's certificate, a server's, and its key."""
    authority = Authority("clients")
    pair = authority.issue("server", names=[x509.DNSName("localhost")])
    texts = (authority.certificate, pair.certificate, pair.key)
    return {name: text.decode() for name, text in zip(names, texts, strict=True)}


def config_map(name: str) -> tuple[str, Object]:
    return "configmaps", objects.config_map(name, **certificates("ca.pem", "cert.pem", "key.pem"))


def secret(name: str) -> tuple[str, Object]:
    return "secrets", objects.secret(name, **certificates("ca.crt", "tls.crt", "tls.key"))


MANIFESTS: Final = sorted((ROOT / "deploy").glob("manifests/*.yaml")) + sorted((ROOT / "deploy").glob("legacy/*.yaml"))


def seconds_to_ready(pod: Object) -> float:
    """From the start of its container."""
    (status,) = pod["status"]["containerStatuses"]
    started = dt.datetime.fromisoformat(status["state"]["running"]["startedAt"])
    ready = next(item for item in pod["status"]["conditions"] if item["type"] == "Ready")
    return (dt.datetime.fromisoformat(ready["lastTransitionTime"]) - started).total_seconds()


def wait_until_ready(deployed: Deployed) -> Object:
    deployed.until(lambda: any(map(is_ready, deployed.pods)), f"{deployed.name} is Ready")
    return next(filter(is_ready, deployed.pods))


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "secure"])
@pytest.mark.parametrize("name", NAMES)
def test_the_original_manifest_gets_ready(cluster: Cluster, name: str, *, secure: bool) -> None:
    others = [config_map(f"{name}-config")] if secure else []
    namespace = f"original-{name}-{'secure' if secure else 'plain'}"
    with Deployed(cluster, namespace, objects.original(name, secure=secure), *others) as deployed:
        pod = wait_until_ready(deployed)
        assert seconds_to_ready(pod) <= READY_WITHIN_S
        assert pod["status"]["containerStatuses"][0]["restartCount"] == 0
        deployed.until(lambda: len(deployed.addresses) == 1, "the service names it")


@pytest.mark.parametrize("name", NAMES)
def test_native_probes(cluster: Cluster, name: str) -> None:
    made = objects.daemon_set(name, securityContext=objects.rights("SYS_PTRACE", "SYS_ADMIN"), **objects.grpc_probes())
    with Deployed(cluster, f"native-{name}", made) as deployed:
        assert seconds_to_ready(wait_until_ready(deployed)) <= READY_WITHIN_S


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: f"{path.parent.name}-{path.stem}")
@pytest.mark.usefixtures("crds")
def test_a_manifest_gets_ready(cluster: Cluster, path: Path) -> None:
    """As it is, with the Secrets that docs/kubernetes.md has its reader make; where there is TLS, for clients too."""
    made = [secret(f"{path.name.partition('-')[0]}-tls")] if path.stem.endswith("-tls") else []
    if path.stem.endswith("-secure"):
        made = [config_map(f"{path.name.partition('-')[0]}-config")]
    with Applied(cluster, path, *made) as deployed:
        pod = wait_until_ready(deployed)
        assert seconds_to_ready(pod) <= READY_WITHIN_S
        deployed.until(lambda: len(deployed.addresses) == 1, "the service names it")
