"""What is in deploy/ is taken by a real API server, and its schemas refuse what no daemon could do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest

from tests.daemon import ROOT
from tests.e2e.kubernetes.api import ApiError
from tests.e2e.kubernetes.cluster import Cluster
from tests.e2e.kubernetes.deployed import NAMESPACE

DEPLOY: Final = ROOT / "deploy"
GROUPS: Final = {"ArgusWatcher": "arguscontroller", "JanusGuard": "januscontroller"}


GOOD: Final[dict[str, dict[str, Any]]] = {
    "ArgusWatcher": {
        "paths": ["/etc"],
        "events": ["create", "close"],
        "recursive": True,
        "maxDepth": 2,
        "ignore": ["x"],
    },
    "JanusGuard": {"deny": ["/etc/shadow"], "allow": ["/etc"], "events": ["open"], "audit": True},
}


def resource(kind: str, *subjects: dict[str, Any], **spec: Any) -> str:
    wanted = {"selector": {"matchLabels": {"app": "x"}}, "subjects": list(subjects), **spec}
    return json.dumps(
        {
            "apiVersion": f"{GROUPS[kind]}.clustergarage.io/v1alpha1",
            "kind": kind,
            "metadata": {"name": "tried", "namespace": NAMESPACE},
            "spec": {key: value for key, value in wanted.items() if value is not None},
        }
    )


def try_(cluster: Cluster, text: str) -> None:
    cluster.kubectl("create", "--dry-run=server", "--validate=false", "--filename=-", stdin=text)


@pytest.mark.parametrize("kind", GROUPS)
@pytest.mark.usefixtures("crds")
def test_a_good_object_is_taken(cluster: Cluster, kind: str) -> None:
    try_(cluster, resource(kind, GOOD[kind]))


@pytest.mark.parametrize(
    ("kind", "change", "spec", "field"),
    [
        ("ArgusWatcher", {"events": ["exec"]}, {}, "spec.subjects[0].events[0]"),
        ("ArgusWatcher", {"events": []}, {}, "spec.subjects[0].events"),
        ("ArgusWatcher", {"paths": []}, {}, "spec.subjects[0].paths"),
        ("ArgusWatcher", {"maxDepth": -1}, {}, "spec.subjects[0].maxDepth"),
        ("ArgusWatcher", {"recursive": False}, {}, "spec.subjects[0].maxDepth"),
        ("ArgusWatcher", {"recursive": "yes"}, {}, "spec.subjects[0].recursive"),
        ("ArgusWatcher", {"tags": {"a": 1}}, {}, "spec.subjects[0].tags.a"),
        ("ArgusWatcher", {}, {"selector": None}, "spec.selector"),
        ("ArgusWatcher", {}, {"selector": {}}, "spec.selector"),
        ("ArgusWatcher", {}, {"subjects": []}, "spec.subjects"),
        ("JanusGuard", {"events": ["modify"]}, {}, "spec.subjects[0].events[0]"),
        ("JanusGuard", {"audit": "yes"}, {}, "spec.subjects[0].audit"),
        ("JanusGuard", {}, {"selector": {}}, "spec.selector"),
    ],
)
@pytest.mark.usefixtures("crds")
def test_a_bad_object_is_refused_by_the_field(
    cluster: Cluster, kind: str, change: dict[str, Any], spec: dict[str, Any], field: str
) -> None:
    with pytest.raises(ApiError) as refusal:
        try_(cluster, resource(kind, {**GOOD[kind], **change}, **spec))
    assert f"{field}:" in str(refusal.value)


def manifests() -> list[Path]:
    """Every file that kubectl can apply: not the chart's templates."""
    return [
        path for path in sorted(DEPLOY.rglob("*.yaml")) if "chart" not in path.parts and "kind:" in path.read_text()
    ]


@pytest.mark.parametrize("path", manifests(), ids=lambda path: str(path.relative_to(DEPLOY)))
@pytest.mark.usefixtures("crds")
def test_a_manifest_is_taken(cluster: Cluster, path: Path) -> None:
    for namespace in namespaces(path):
        cluster.kubectl("apply", "--filename=-", stdin=namespace)
    cluster.kubectl("apply", "--dry-run=server", f"--filename={path}")


def namespaces(path: Path) -> list[str]:
    """The namespaces that a file makes: what is tried in one takes that it is there."""
    return [document for document in path.read_text().split("\n---\n") if "\nkind: Namespace\n" in f"\n{document}\n"]
