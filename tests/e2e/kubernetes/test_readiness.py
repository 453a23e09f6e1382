"""A daemon is Ready soon after its start, under every kind of probe that manifests have."""

from __future__ import annotations

import datetime as dt
from typing import Final

import pytest

from tests.e2e.kubernetes import objects
from tests.e2e.kubernetes.api import Object
from tests.e2e.kubernetes.cluster import Cluster
from tests.e2e.kubernetes.deployed import Deployed, is_ready
from tests.grpc.authority import Authority

READY_WITHIN_S: Final = 15.0
NAMES: Final = ("argusd", "janusd")


def certificates(name: str) -> Object:
    authority = Authority("clients")
    pair = authority.issue("server")
    files = {"ca.pem": authority.certificate, "cert.pem": pair.certificate, "key.pem": pair.key}
    return objects.config_map(name, **{file: text.decode() for file, text in files.items()})


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
    others = [("configmaps", certificates(f"{name}-config"))] if secure else []
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
