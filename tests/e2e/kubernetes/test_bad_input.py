"""A manifest that lacks something: the pod's log says what and what to change, and the probe tells the truth."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.kubernetes import objects
from tests.e2e.kubernetes.api import Object
from tests.e2e.kubernetes.cluster import Cluster
from tests.e2e.kubernetes.deployed import Deployed, is_ready


def without_host_pid(made: Object) -> None:
    made["spec"]["template"]["spec"]["hostPID"] = False


def without_capabilities(made: Object) -> None:
    container(made)["securityContext"] = {"capabilities": {"drop": ["ALL"]}}


def without_system_admin(made: Object) -> None:
    container(made)["securityContext"] = objects.rights("SYS_PTRACE")


def read_only(made: Object) -> None:
    container(made)["securityContext"]["readOnlyRootFilesystem"] = True


def with_wrong_keys(made: Object) -> None:
    container(made)["command"] += [
        "-tls",
        "-tlscafile=/tls/ca.crt",
        "-tlscertfile=/tls/tls.crt",
        "-tlskeyfile=/tls/tls.key",
    ]
    container(made)["volumeMounts"].append({"name": "tls", "mountPath": "/tls"})
    made["spec"]["template"]["spec"]["volumes"].append({"name": "tls", "secret": {"secretName": "wrong-keys"}})


def container(made: Object) -> dict[str, Any]:
    (only,) = made["spec"]["template"]["spec"]["containers"]
    found: dict[str, Any] = only
    return found


@pytest.mark.parametrize(
    ("name", "spoil", "says", "ready"),
    [
        ("argusd", without_host_pid, "hostPID", False),
        ("argusd", without_capabilities, "PTRACE", False),
        ("janusd", without_system_admin, "SYS_ADMIN", False),
        ("argusd", read_only, "Read-only file system", False),
        ("argusd", with_wrong_keys, "/tls/ca.crt", False),
    ],
)
def test_a_log_says_what_to_change(cluster: Cluster, name: str, spoil: Any, says: str, *, ready: bool) -> None:
    made = objects.daemon_set(name, securityContext=objects.rights("SYS_PTRACE", "SYS_ADMIN"), **objects.grpc_probes())
    spoil(made)
    namespace = f"bad-{name}-{spoil.__name__.replace('_', '-')}"
    others = [("secrets", objects.secret("wrong-keys", key="x"))]
    with Deployed(cluster, namespace, made, *others) as deployed:
        deployed.until(lambda: any(says in line for line in deployed.lines), f"a line with {says}")
        if ready:
            deployed.until(lambda: any(map(is_ready, deployed.pods)), "it is Ready all the same")
        assert any(map(is_ready, deployed.pods)) == ready
