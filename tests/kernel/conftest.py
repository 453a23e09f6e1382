from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

import argusd.cgroups
from tests.kernel.cgroups import Cgroups, mount_point
from tests.kernel.container import Way
from tests.kernel.story import Stage
from tests.kernel.watching import Watching


@pytest.fixture(params=[Way.OPENAT2, Way.SETNS], ids=lambda way: way.value)
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stage]:
    """Every story is played through both ways into a container."""
    stage = Stage(tmp_path, request.param)
    yield stage
    stage.close()


@pytest.fixture(params=["v1-tree", "v2-tree", "v1-proc", "v2-proc"])
def cgroups(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cgroups]:
    """Cgroups of our own; containers are found by way of the tree, or of all processes, as where there is none."""
    version, _, way = request.param.partition("-")
    if os.geteuid() != 0:
        pytest.skip("needs root for cgroups and pid namespaces")
    top = mount_point(version)
    if top is None:
        pytest.skip(f"no cgroup {version} hierarchy is mounted that we may write to")
    if way == "proc":
        monkeypatch.setattr(argusd.cgroups, "trees", lambda: iter(()))
    groups = Cgroups(top / f"argusd-test-{secrets.token_hex(4)}")
    try:
        yield groups
    finally:
        groups.remove()


@pytest.fixture
def watching(tmp_path: Path) -> Iterator[Watching]:
    watching = Watching(tmp_path / "log")
    yield watching
    watching.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "watched"
    folder.mkdir()
    return folder
