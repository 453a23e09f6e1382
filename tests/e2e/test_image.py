"""The scratch image as a node's agent: host PID namespace, default capabilities with SYS_PTRACE and SYS_ADMIN."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from argusd.proto import argus_pb2
from tests.daemon import Daemon
from tests.e2e.client import SERVING, create_watch, first_message, health
from tests.e2e.place import Place
from tests.e2e.runtimes import Docker

PROJECT: Final = Path(__file__).resolve().parents[2]
SIZE_LIMIT_BYTES: Final = 45_000_000
NODE_AGENT: Final = (
    "--pid=host",
    "--cap-add=SYS_PTRACE",
    "--cap-add=SYS_ADMIN",
    "--volume=/sys/fs/cgroup:/sys/fs/cgroup:ro",
)
LEAST_RIGHTS: Final = (
    "--pid=host",
    "--cap-drop=ALL",
    "--cap-add=SYS_PTRACE",
    "--cap-add=DAC_READ_SEARCH",
    NODE_AGENT[-1],
)
"""Without SYS_ADMIN docker's seccomp profile forbids setns(2), and unshare(2) of any kind."""


def missing() -> str:
    """Why the image cannot be built and run here, in words for a skip; empty when it can."""
    absent = [program for program in ("buildah", "debootstrap") if shutil.which(program) is None]
    return Docker.missing() or (f"needs {', '.join(absent)}" if absent else "")


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing()), reason=missing() or "the image can be built and run here"),
    pytest.mark.timeout(900),  # the first test builds the image, and the builder's image where no registry is in reach
]


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    with Place(tmp_path_factory.mktemp("image")) as place, Docker(place) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def image(docker: Docker) -> str:
    subprocess.run(["make", "-C", PROJECT, "image"], check=True, stdin=subprocess.DEVNULL)
    loaded = docker._docker("load", "--quiet", f"--input={PROJECT / 'build' / 'argusd-image.tar'}")
    return loaded.removeprefix("Loaded image:").strip()


def test_is_small_and_holds_one_file(docker: Docker, image: str, tmp_path: Path) -> None:
    assert int(docker._docker("image", "inspect", "--format={{.Size}}", image)) < SIZE_LIMIT_BYTES
    container = docker._docker("create", image)
    docker._docker("cp", f"{container}:/", str(tmp_path / "root"))
    docker._docker("rm", container)
    # The runtime adds its own mount points and files.
    runtime = {".dockerenv", "dev", "etc", "proc", "sys"}
    assert {path.name for path in (tmp_path / "root").iterdir()} - runtime == {"argusd", "tmp"}


@pytest.mark.parametrize(
    ("rights", "enter"),
    [(NODE_AGENT, "openat2"), (NODE_AGENT, "setns"), (LEAST_RIGHTS, "openat2")],
    ids=["as_deployed", "as_deployed_with_setns", "with_the_least_rights"],
)
def test_serves_and_watches_another_container(
    docker: Docker, image: str, tmp_path: Path, rights: tuple[str, ...], enter: str
) -> None:
    # In the foreground: docker's client passes signals, the log and the exit code on.
    name = "argusd-under-test"
    run = (
        "docker",
        f"--host=unix://{docker._socket}",
        "run",
        f"--name={name}",
        "--network=host",
        *rights,
        image,
        "/argusd",
        f"-enter={enter}",
    )
    try:
        with Daemon("-log_dir=/tmp", command=docker.place.enter(*run)) as daemon:
            assert health(daemon.channel) == SERVING
            assert not [line for line in daemon.lines if '"WARNING"' in line]

            box = docker.run()
            subject = argus_pb2.ArgusWatcherSubject(path=["/root"], event=["create"])
            config = argus_pb2.ArgusdConfig(
                name="w", nodeName="n", podName="p", cid=[docker.uri(box)], subject=[subject]
            )
            assert list(create_watch(daemon.channel, config).pid) == [docker.pid(box)]
            message = first_message(daemon.channel, lambda name: docker.exec(box, "touch", f"/root/{name}"))
            assert (message.argusWatcher, message.event, message.nodeName) == ("w", "create", "n")
            daemon.wait_for_text("CREATE file '/root/0' (p:n)")
            docker.remove(box)
            assert daemon.stop() == 0
        docker._docker("cp", f"{name}:/tmp", str(tmp_path / "left"))
        assert {path.name for path in (tmp_path / "left").iterdir()} == {"argusd.INFO"}
    finally:
        docker._docker("rm", "--force", name)
