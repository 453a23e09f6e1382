"""What is in deploy/ fits the daemons: their flags, events, fields, names and rights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from argusd import flags, privileges
from argusd.proto import argus_pb2, janus_pb2
from argusd.subjects import EVENT_MASKS, GUARD_EVENT_MASKS

DEPLOY: Final = Path(__file__).resolve().parents[2] / "deploy"
DAEMONS: Final = {"argusd": ("argus", argus_pb2), "janusd": ("janus", janus_pb2)}
MANIFESTS: Final = sorted(path for folder in ("manifests", "legacy") for path in (DEPLOY / folder).glob("*.yaml"))


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def one(path: Path, kind: str) -> dict[str, Any]:
    (found,) = [document for document in documents(path) if document["kind"] == kind]
    return found


def container(workload: dict[str, Any]) -> dict[str, Any]:
    (only,) = workload["spec"]["template"]["spec"]["containers"]
    assert isinstance(only, dict)
    return only


def settings(path: Path) -> flags.Settings:
    """What the daemon makes of its command line."""
    daemon = container(one(path, "DaemonSet"))
    program, *inline = daemon.get("command", [f"/{daemon['image'].partition(':')[0]}"])
    return flags.parse([*inline, *daemon.get("args", [])], program)


def probes(path: Path) -> Iterator[dict[str, Any]]:
    daemon = container(one(path, "DaemonSet"))
    yield from (daemon[name] for name in ("startupProbe", "readinessProbe", "livenessProbe") if name in daemon)


def properties(schema: dict[str, Any], *path: str) -> dict[str, Any]:
    for name in path:
        schema = schema["properties"][name]
        schema = schema.get("items", schema)
    found = schema["properties"]
    assert isinstance(found, dict)
    return found


def spec_of(plural: str) -> dict[str, Any]:
    (version,) = one(DEPLOY / "crds" / f"{plural}.yaml", "CustomResourceDefinition")["spec"]["versions"]
    schema = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    assert isinstance(schema, dict)
    return schema


@pytest.fixture(params=MANIFESTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def manifest(request: pytest.FixtureRequest) -> Path:
    assert isinstance(request.param, Path)
    return request.param


def test_the_daemon_takes_its_flags(manifest: Path) -> None:
    service = one(manifest, "DaemonSet")["metadata"]["namespace"]
    assert settings(manifest).services == (service,)
    assert settings(manifest).tls == ("-tls" in manifest.stem or "secure" in manifest.stem)


def test_what_the_files_of_tls_are_is_mounted(manifest: Path) -> None:
    given = settings(manifest)
    mounts = [mount["mountPath"] for mount in container(one(manifest, "DaemonSet"))["volumeMounts"]]
    for file in filter(None, (given.tlscafile, given.tlscertfile, given.tlskeyfile)):
        assert str(Path(file).parent) in mounts


@pytest.mark.parametrize("path", sorted((DEPLOY / "manifests").glob("*.yaml")), ids=lambda path: path.stem)
def test_what_is_in_force_is_kept_on_the_node(path: Path) -> None:
    (mount,) = [
        mount
        for mount in container(one(path, "DaemonSet"))["volumeMounts"]
        if mount["mountPath"] == settings(path).state_dir
    ]
    volumes = one(path, "DaemonSet")["spec"]["template"]["spec"]["volumes"]
    assert [volume["hostPath"]["path"] for volume in volumes if volume["name"] == mount["name"]] == [mount["mountPath"]]


def test_every_mount_has_its_volume(manifest: Path) -> None:
    for workload in documents(manifest):
        if workload["kind"] in {"DaemonSet", "Deployment"}:
            volumes = {volume["name"] for volume in workload["spec"]["template"]["spec"].get("volumes", [])}
            assert {mount["name"] for mount in container(workload).get("volumeMounts", [])} == volumes


def test_a_controller_finds_the_daemon(manifest: Path) -> None:
    """By the name of the service and of its port, and by the label of the pods."""
    name = one(manifest, "DaemonSet")["metadata"]["name"]
    service = one(manifest, "Service")
    assert service["metadata"]["name"] == f"{name}-svc"
    assert service["metadata"]["namespace"] == DAEMONS[name][0]
    assert service["spec"]["clusterIP"] == "None"
    assert [port["name"] for port in service["spec"]["ports"]] == ["grpc"]
    assert service["spec"]["selector"] == {"daemon": name}
    assert one(manifest, "DaemonSet")["spec"]["template"]["metadata"]["labels"]["daemon"] == name
    ports = {port["name"]: port["containerPort"] for port in container(one(manifest, "DaemonSet"))["ports"]}
    assert f":{ports['grpc']}" in settings(manifest).address


def test_probes_go_where_no_certificate_is_asked_for(manifest: Path) -> None:
    given = settings(manifest)
    for probe in probes(manifest):
        if "grpc" in probe:
            address = given.health_address if given.tls else given.address
            assert address.endswith(f":{probe['grpc']['port']}")
        else:
            assert ("-tls-client-cert" in probe["exec"]["command"]) == given.tls


def test_the_daemon_sees_the_processes_of_the_node(manifest: Path) -> None:
    assert one(manifest, "DaemonSet")["spec"]["template"]["spec"]["hostPID"] is True


@pytest.mark.parametrize("path", sorted((DEPLOY / "manifests").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_daemon_has_the_rights_that_it_needs_and_no_more(path: Path) -> None:
    context = container(one(path, "DaemonSet"))["securityContext"]
    needed = {str(right).removeprefix("CAP_") for right in privileges.needed("openat2", settings(path).services)}
    assert set(context["capabilities"]["add"]) == needed
    assert context["capabilities"]["drop"] == ["ALL"]
    assert context["readOnlyRootFilesystem"] is True
    names = {document["metadata"]["name"] for document in documents(path) if document["kind"] == "ServiceAccount"}
    (subject,) = one(path, "ClusterRoleBinding")["subjects"]
    assert subject["name"] in names - {one(path, "DaemonSet")["metadata"]["name"]}


@pytest.mark.parametrize(("plural", "masks"), [("arguswatchers", EVENT_MASKS), ("janusguards", GUARD_EVENT_MASKS)])
def test_schemas_have_the_words_of_events(plural: str, masks: Mapping[str, int]) -> None:
    assert set(properties(spec_of(plural), "subjects")["events"]["items"]["enum"]) == set(masks)


@pytest.mark.parametrize(
    ("plural", "message"),
    [("arguswatchers", argus_pb2.ArgusWatcherSubject), ("janusguards", janus_pb2.JanusGuardSubject)],
)
def test_schemas_have_the_fields_of_the_messages(plural: str, message: Any) -> None:
    # A list has a name of many in the object, of one in the message.
    many = {"path": "paths", "event": "events"}
    fields = {many.get(field.name, field.name) for field in message.DESCRIPTOR.fields}
    assert set(properties(spec_of(plural), "subjects")) == fields


@pytest.mark.parametrize("path", sorted((DEPLOY / "examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_examples_use_fields_that_the_schemas_have(path: Path) -> None:
    (example,) = documents(path)
    spec = spec_of(f"{example['kind'].lower()}s")
    assert set(example["spec"]) <= set(spec["properties"])
    for subject in example["spec"]["subjects"]:
        known = properties(spec, "subjects")
        assert set(subject) <= set(known)
        assert set(subject["events"]) <= set(known["events"]["items"]["enum"])
