"""What runtimes note about containers: untrusted text, read through no link."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from argusd import cgroups, notes
from argusd.discovery import Seat
from argusd.notes import Note
from argusd.registry import not_found, successor_of

FULL = "ab" * 32
BUNDLE = f"run/containerd/io.containerd.runtime.v2.task/k8s.io/{FULL}/config.json"
CRIO = f"run/containers/storage/overlay-containers/{FULL}/userdata/config.json"
DOCKER = f"var/lib/docker/containers/{FULL}/config.v2.json"


def write(root: Path, path: str, content: object) -> Path:
    file = root / path
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(content))
    return file


@pytest.mark.parametrize(
    ("path", "content", "note"),
    [
        (BUNDLE, {"annotations": {"io.kubernetes.cri.container-name": "web"}}, Note("web")),
        (BUNDLE, {"annotations": {"io.kubernetes.cri.container-type": "sandbox"}}, Note("", sandbox=True)),
        (CRIO, {"annotations": {"io.kubernetes.container.name": "web"}}, Note("web")),
        (DOCKER, {"Config": {"Labels": {"io.kubernetes.container.name": "web"}}}, Note("web")),
        (BUNDLE, {"annotations": {"io.kubernetes.cri.container-name": ["web"]}}, Note()),
        (BUNDLE, {"annotations": {"io.kubernetes.cri.container-name": "w" * 1000}}, Note()),
        (BUNDLE, {"annotations": []}, Note()),
        (BUNDLE, [], Note()),
        (BUNDLE, {"x": "y" * (1 << 20)}, Note()),
    ],
)
def test_notes(tmp_path: Path, path: str, content: object, note: Note) -> None:
    write(tmp_path, path, content)
    assert notes.read(FULL, tmp_path) == note


def test_hostile_notes_are_no_notes(tmp_path: Path) -> None:
    file = write(tmp_path, BUNDLE, {})
    for text in (b"", b"\xff\x00", b"[" * 100_000, b'{"annotations": '):
        file.write_bytes(text)
        assert notes.read(FULL, tmp_path) == Note()
    real = write(tmp_path, "elsewhere/config.json", {"annotations": {"io.kubernetes.cri.container-name": "web"}})
    file.unlink()
    file.symlink_to(real)
    assert notes.read(FULL, tmp_path) == Note()
    file.unlink()
    os.mkfifo(file)
    assert notes.read(FULL, tmp_path) == Note()
    assert notes.read(FULL, tmp_path / "nowhere") == Note()


@pytest.mark.parametrize(
    ("directory", "uid"),
    [
        (b"/kubepods/burstable/pod0a-1b", "0a-1b"),
        (b"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0a_1b.slice", "0a-1b"),
        (b"/machine.slice/machine-libpod_pod_0a1b.slice", "0a1b"),
        (b"/kubepods/burstable", ""),
        (b"/docker", ""),
        (b"/system.slice", ""),
    ],
)
def test_the_pod_of_a_cgroup(directory: bytes, uid: str) -> None:
    assert cgroups.pod_in(directory) == uid


def test_names_decide_who_takes_a_seat() -> None:
    web, log, unknown = Seat("1" * 64, "web", "p"), Seat("2" * 64, "log", "p"), Seat("3" * 64, "", "p")
    new = "f" * 64
    assert successor_of([log, web], new, "web", known=False) == web
    assert successor_of([log, web], new, "web", known=True) == web
    assert successor_of([log, web], new, "other", known=False) is None
    assert successor_of([log, web], new, "", known=False) == log
    assert successor_of([log, web], new, "", known=True) is None
    assert successor_of([unknown], new, "web", known=False) == unknown
    assert successor_of([Seat("f" * 12, "", "p")], new, "web", known=True) == Seat("f" * 12, "", "p")


def test_a_container_that_is_not_found_has_a_seat_beside_the_others() -> None:
    here, gone = Seat("1" * 64, "web", "p"), Seat("2" * 64, "log", "p")
    cids = ["containerd://" + "1" * 64, "containerd://" + "2" * 64]
    assert not_found(cids, [here], []) == [Seat("2" * 64, "", "p")]
    assert not_found(cids, [here], [gone]) == [gone]
    assert not_found(cids, [here, gone], []) == []
