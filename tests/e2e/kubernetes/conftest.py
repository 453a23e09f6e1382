from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TypeAlias

import pytest

from tests.daemon import ROOT
from tests.e2e.kubernetes import objects
from tests.e2e.kubernetes.api import Object
from tests.e2e.kubernetes.cluster import Cluster, missing
from tests.e2e.kubernetes.deployed import NAMESPACE, Deployed, is_ready, until
from tests.e2e.place import Place

CRDS = ("arguswatchers.arguscontroller.clustergarage.io", "janusguards.januscontroller.clustergarage.io")
Make: TypeAlias = Callable[[Object], Object]


@pytest.fixture(scope="session")
def cluster(place: Place) -> Iterator[Cluster]:
    if reason := missing():
        pytest.exit(reason, returncode=1)  # nobody runs these tests without asking for them
    with Cluster(place) as cluster:
        until(lambda: cluster.api.get("serviceaccounts", NAMESPACE, "default"), "the default account")
        yield cluster


@pytest.fixture(scope="session")
def crds(cluster: Cluster) -> None:
    cluster.kubectl("apply", f"--filename={ROOT / 'deploy' / 'crds'}")
    cluster.kubectl("wait", "--for=condition=established", "--timeout=30s", "crd", *CRDS)


@pytest.fixture(scope="session")
def argusd(cluster: Cluster) -> Iterator[Deployed]:
    """An argusd for all tests that do not end it."""
    made = objects.daemon_set(
        "argusd", securityContext=objects.rights("SYS_PTRACE", "SYS_ADMIN"), **objects.grpc_probes()
    )
    with Deployed(cluster, "watching", made) as deployed:
        yield deployed


@pytest.fixture(scope="session")
def janusd(cluster: Cluster) -> Iterator[Deployed]:
    """A janusd for all tests that do not end it."""
    made = objects.daemon_set(
        "janusd", securityContext=objects.rights("SYS_PTRACE", "SYS_ADMIN"), **objects.grpc_probes()
    )
    with Deployed(cluster, "guarding", made) as deployed:
        yield deployed


@pytest.fixture
def run(cluster: Cluster) -> Iterator[Make]:
    """Makes a pod, waits until it is Ready and returns it as it is then; it is deleted after the test."""
    with ExitStack() as stack:

        def make(pod: Object) -> Object:
            name = pod["metadata"]["name"]
            cluster.api.create("pods", NAMESPACE, pod)
            stack.callback(cluster.api.delete, "pods", NAMESPACE, name)
            until(lambda: is_ready(cluster.api.get("pods", NAMESPACE, name)), f"{name} is Ready")
            return cluster.api.get("pods", NAMESPACE, name)

        yield make
