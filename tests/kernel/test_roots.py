"""The root of a container stays the one that it was, whatever its process 1 does."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.kernel.container import Way
from tests.kernel.guarding import GuardStage
from tests.waiting import until

BUSYBOX: Final = shutil.which("busybox") or ""
START: Final = """
import os, sys
os.chroot(sys.argv[1])
os.chdir("/")
print("started", flush=True)
sys.stdin.readline()
os.chroot("/next")
os.chdir("/")
os.execv("/busybox", ["busybox", "sleep", "1000"])
"""
"""Process 1 of a container whose start script changes the root before it runs the application."""


@pytest.fixture(params=list(Way))
def stage(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[GuardStage]:
    stage = GuardStage(tmp_path, request.param)
    (stage.world.root / "d/secret").write_text("-")
    (stage.world.root / "empty").mkdir()
    yield stage
    stage.close()


def notices(stage: GuardStage) -> list[str]:
    """The notices since the last call."""
    return [notice.kind for notice in stage.guarding.engine.notices()]


def told_that_it_left(stage: GuardStage) -> None:
    """Wait for that notice, which comes once."""
    kinds: list[str] = []

    def told() -> bool:
        kinds.extend(notices(stage))
        return "root" in kinds

    until(told, "it is told that process 1 has left the root")
    assert kinds.count("root") == 1


def replace(path: Path) -> None:
    """Let another file stand there."""
    (path.parent / "fresh").write_text("-")
    (path.parent / "fresh").rename(path)


def test_guard_stands_when_process_1_changes_its_root(stage: GuardStage) -> None:
    stage.guarding.guard("-", stage.init.pid, deny=[b"/d/secret"])
    assert stage.init.do("chroot", "/empty") == ""
    assert stage.inside.do("open", "/d/secret") == "EPERM"
    told_that_it_left(stage)
    replace(stage.world.root / "d/secret")
    stage.guarding.settle()
    assert stage.inside.do("open", "/d/secret") == "EPERM"
    (stage.world.root / "d").rename(stage.world.root / "old")
    (stage.world.root / "d").mkdir()
    (stage.world.root / "d/secret").write_text("-")
    until(lambda: stage.inside.do("open", "/d/secret") == "EPERM", "the path is found in the old root")
    assert notices(stage) == []


@pytest.mark.skipif(not BUSYBOX, reason="needs busybox, a program without libraries")
def test_root_to_which_a_start_script_goes_is_the_containers(stage: GuardStage) -> None:
    """It changes the root and then executes the application, in the first seconds of process 1."""
    nested = stage.world.root / "next"
    (nested / "d").mkdir(parents=True)
    (nested / "d/secret").write_text("-")
    shutil.copy(BUSYBOX, nested / "busybox")
    with subprocess.Popen(
        [sys.executable, "-c", START, str(stage.world.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"started\n"
        stage.guarding.guard("-", process.pid, deny=[b"/d/secret"])
        process.stdin.write(b"\n")
        process.stdin.flush()
        until(lambda: stage.host.do("open", nested / "d/secret") == "EPERM", "the new root is guarded")
        process.kill()
