"""The scratch image as a node's agent: host PID namespace, docker's default seccomp profile, only cgroups mounted.

It has the rights that the manifests give it, docker's default capabilities with SYS_PTRACE and SYS_ADMIN, or the least.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from argusd.proto import argus_pb2, janus_pb2
from tests.e2e.client import SERVING, create_watch, first_message, health
from tests.e2e.place import Place, PlacedDaemon, inotify_watches, until
from tests.e2e.runtimes import Docker

PROJECT: Final = Path(__file__).resolve().parents[2]
SIZE_LIMIT_BYTES: Final = 45_000_000
STOP_TIMEOUT_S: Final = 5.0
NODE_AGENT: Final = ("--pid=host", "--cgroupns=private", "--volume=/sys/fs/cgroup:/sys/fs/cgroup:ro")
CAPABILITIES: Final = {1: "DAC_OVERRIDE", 2: "DAC_READ_SEARCH", 18: "SYS_CHROOT", 19: "SYS_PTRACE", 21: "SYS_ADMIN"}
"""Those that matter here, by their numbers in linux/capability.h."""


@dataclass(frozen=True, slots=True)
class Rights:
    """What the daemon's container may do beside its namespaces, and how the kernel tells."""

    flags: tuple[str, ...]
    has: frozenset[str]
    lacks: frozenset[str]


RIGHTS: Final = {
    "manifest": Rights(
        ("--cap-add=SYS_PTRACE", "--cap-add=SYS_ADMIN"),
        frozenset({"DAC_OVERRIDE", "SYS_CHROOT", "SYS_PTRACE", "SYS_ADMIN"}),
        frozenset({"DAC_READ_SEARCH"}),
    ),
    "least": Rights(
        ("--cap-drop=ALL", "--cap-add=SYS_PTRACE", "--cap-add=DAC_READ_SEARCH"),
        frozenset({"SYS_PTRACE", "DAC_READ_SEARCH"}),
        frozenset({"DAC_OVERRIDE", "SYS_CHROOT", "SYS_ADMIN"}),
    ),
}
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
    loaded = docker.call("load", "--quiet", f"--input={PROJECT / 'build' / 'argusd-image.tar'}")
    return loaded.removeprefix("Loaded image:").strip()


def test_is_small_and_holds_one_file(docker: Docker, image: str, tmp_path: Path) -> None:
    assert int(docker.call("image", "inspect", "--format={{.Size}}", image)) < SIZE_LIMIT_BYTES
    container = docker.call("create", image)
    docker.call("cp", f"{container}:/", str(tmp_path / "root"))
    docker.call("rm", container)
    # The runtime adds its own mount points and files.
    runtime = {".dockerenv", "dev", "etc", "proc", "sys"}
    assert {path.name for path in (tmp_path / "root").iterdir()} - runtime == {"argusd", "janusd", "tmp"}


@pytest.fixture
def name(docker: Docker) -> Iterator[str]:
    """The name of the daemon's container, which is gone afterwards."""
    name = "argusd-under-test"
    yield name
    docker.call("rm", "--force", name)


def agent(
    docker: Docker, name: str, image: str, rights: tuple[str, ...], enter: str, program: str = "/argusd"
) -> PlacedDaemon:
    # In the foreground: docker's client passes signals, the log and the exit code on. The network is the test's way in.
    run = docker.command("run", f"--name={name}", "--network=host", *NODE_AGENT, *rights, image, program)
    return PlacedDaemon(docker.place, "-log_dir=/tmp", f"-enter={enter}", command=run)


def members(docker: Docker, container: str) -> list[Path]:
    """The processes of a container, in the place's /proc."""
    folders = [docker.place.proc / str(pid) for pid in docker.place.pids()]
    return [folder for folder in folders if container in (folder / "cgroup").read_text()]


def watches(docker: Docker, name: str) -> list[str]:
    """The kernel's list of what the daemon in a container watches, its own mark in the queue included."""
    container = docker.call("inspect", "--format={{.Id}}", name)
    return [line for folder in members(docker, container) for line in inotify_watches(folder)]


def capabilities(docker: Docker, name: str) -> set[str]:
    """What the daemon's process may really do."""
    status = (docker.place.proc / str(docker.pid(name)) / "status").read_text()
    mask = int(status.partition("\nCapEff:")[2].split()[0], 16)
    return {capability for number, capability in CAPABILITIES.items() if mask & 1 << number}


def is_confined(docker: Docker, name: str) -> bool:
    """Whether it runs as a pod does: filtered system calls, its own cgroup namespace, nothing mounted but cgroups."""
    process, node = (docker.place.proc / str(pid) for pid in (docker.pid(name), 1))
    mounts = json.loads(docker.call("inspect", "--format={{json .Mounts}}", name))
    return (
        "\nSeccomp:\t2\n" in (process / "status").read_text()
        and (process / "ns/cgroup").readlink() != (node / "ns/cgroup").readlink()
        and (process / "ns/pid").readlink() == (node / "ns/pid").readlink()
        and [(mount["Destination"], mount["RW"]) for mount in mounts] == [("/sys/fs/cgroup", False)]
    )


@pytest.mark.parametrize(("rights", "enter"), [("manifest", "openat2"), ("manifest", "setns"), ("least", "openat2")])
def test_watches_another_container(
    docker: Docker, image: str, name: str, rights: str, enter: str, tmp_path: Path
) -> None:
    wanted = RIGHTS[rights]
    with agent(docker, name, image, wanted.flags, enter) as daemon:
        assert health(daemon.channel) == SERVING
        assert not [line for line in daemon.lines if '"WARNING"' in line]
        assert is_confined(docker, name)
        assert wanted.has <= capabilities(docker, name)
        assert not wanted.lacks & capabilities(docker, name)

        before = watches(docker, name)
        box = docker.run()
        docker.exec_detached(box, "/bin/sleep", "3600")
        subject = argus_pb2.ArgusWatcherSubject(path=["/root"], event=["create"], recursive=True)
        config = argus_pb2.ArgusdConfig(name="w", nodeName="n", podName="p", cid=[docker.uri(box)], subject=[subject])
        assert list(create_watch(daemon.channel, config).pid) == [docker.pid(box)]
        assert daemon.state() == [("n", "p", [docker.pid(box)])]
        assert len(watches(docker, name)) > len(before)

        message = first_message(daemon.channel, lambda name: docker.exec(box, "touch", f"/root/{name}"))
        assert (message.argusWatcher, message.event, message.nodeName) == ("w", "create", "n")
        daemon.wait_for_text("CREATE file '/root/0' (p:n)")
        docker.exec(box, "sh", "-c", "mkdir -m 0 /root/closed && touch /root/closed/inside")
        daemon.wait_for_text("CREATE file '/root/closed/inside' (p:n)")

        docker.remove(box)
        until(lambda: daemon.state() == [], STOP_TIMEOUT_S, "a state without the pod")
        until(lambda: watches(docker, name) == before, STOP_TIMEOUT_S, "no watches")
        assert daemon.stop() == 0
    docker.call("cp", f"{name}:/tmp", str(tmp_path / "left"))
    assert {path.name for path in (tmp_path / "left").iterdir()} == {"argusd.INFO"}


def test_guards_another_container_with_the_rights_of_the_manifests(docker: Docker, image: str, name: str) -> None:
    with agent(docker, name, image, RIGHTS["manifest"].flags, "openat2", "/janusd") as daemon:
        assert not [line for line in daemon.lines if '"WARNING"' in line]
        assert is_confined(docker, name)
        box = docker.run()
        docker.exec(box, "sh", "-c", "echo x >/root/secret && echo x >/root/public")
        subject = janus_pb2.JanusGuardSubject(deny=["/root/secret"], allow=["/root/public"], event=["open"])
        config = janus_pb2.JanusdConfig(name="g", nodeName="n", podName="p", cid=[docker.uri(box)], subject=[subject])
        assert list(daemon.guards.CreateGuard(config, timeout=5).pid) == [docker.pid(box)]
        docker.exec(box, "sh", "-c", "cat /root/public && ! cat /root/secret")
        daemon.wait_for_text("<ALLOW> OPEN_PERM file '/root/public' (p:n)")
        daemon.wait_for_text("<DENY> OPEN_PERM file '/root/secret' (p:n)")
        docker.remove(box)
        until(lambda: daemon.guard_state() == [], STOP_TIMEOUT_S, "a state without the pod")
        assert daemon.stop() == 0
