"""The scratch image as a node's agent: host PID namespace, docker's default seccomp profile, only cgroups mounted.

It has the rights that the manifests give it, docker's default capabilities with SYS_PTRACE and SYS_ADMIN, or the least
that watching or guarding takes.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc
import pytest

from argusd.proto import argus_pb2, janus_pb2
from tests.e2e import opening
from tests.e2e.client import SERVING, create_watch, first_message, health
from tests.e2e.guarding import Stage
from tests.e2e.place import Place, PlacedDaemon, RuntimeFailedError, inotify_watches, until
from tests.e2e.runtimes import Docker
from tests.e2e.test_guards import STORIES
from tests.kernel.story import parse

PROJECT: Final = Path(__file__).resolve().parents[2]
SIZE_LIMIT_BYTES: Final = 45_000_000
STOP_TIMEOUT_S: Final = 5.0
PROBE_NOT_SERVED: Final = 3
"""The exit code of grpc_health_probe when the call itself fails, here because no such service is there."""
NODE_AGENT: Final = ("--pid=host", "--cgroupns=private", "--volume=/sys/fs/cgroup:/sys/fs/cgroup:ro")
CAPABILITIES: Final = {
    1: "DAC_OVERRIDE",
    2: "DAC_READ_SEARCH",
    18: "SYS_CHROOT",
    19: "SYS_PTRACE",
    21: "SYS_ADMIN",
    29: "AUDIT_WRITE",
}
"""Those that matter here, by their numbers in linux/capability.h."""


CLOSED: Final = """
cd /root && echo x >secret && echo x >public && mkdir -p closed/in && chmod 0 secret public closed closed/in
"""
"""Files and folders that are closed to everybody but those who may pass over that."""


@dataclass(frozen=True, slots=True)
class Rights:
    """What the daemon's container may do beside its namespaces, and how the kernel tells."""

    flags: tuple[str, ...]
    has: frozenset[str]
    lacks: frozenset[str]


def rights(*flags: str, has: str, lacks: str) -> Rights:
    return Rights(flags, frozenset(has.split()), frozenset(lacks.split()))


MANIFEST: Final = rights(
    *("--cap-add=SYS_PTRACE", "--cap-add=SYS_ADMIN"),
    has="DAC_OVERRIDE SYS_CHROOT SYS_PTRACE SYS_ADMIN AUDIT_WRITE",
    lacks="DAC_READ_SEARCH",
)
LEAST_TO_WATCH: Final = rights(
    *("--cap-drop=ALL", "--cap-add=SYS_PTRACE", "--cap-add=DAC_READ_SEARCH"),
    has="SYS_PTRACE DAC_READ_SEARCH",
    lacks="DAC_OVERRIDE SYS_CHROOT SYS_ADMIN AUDIT_WRITE",
)
"""Without SYS_ADMIN docker's seccomp profile forbids setns(2), unshare(2) of any kind, and fanotify_init(2)."""
LEAST_TO_GUARD: Final = rights(
    *(*LEAST_TO_WATCH.flags, "--cap-add=SYS_ADMIN"),
    has="SYS_PTRACE DAC_READ_SEARCH SYS_ADMIN",
    lacks="DAC_OVERRIDE SYS_CHROOT AUDIT_WRITE",
)
LEAST_TO_ENTER: Final = rights(
    *(*LEAST_TO_GUARD.flags, "--cap-add=SYS_CHROOT"),
    has="SYS_PTRACE DAC_READ_SEARCH SYS_ADMIN SYS_CHROOT",
    lacks="DAC_OVERRIDE AUDIT_WRITE",
)
LEAST_TO_AUDIT: Final = rights(
    *(*LEAST_TO_GUARD.flags, "--cap-add=AUDIT_WRITE"),
    has="SYS_PTRACE DAC_READ_SEARCH SYS_ADMIN AUDIT_WRITE",
    lacks="DAC_OVERRIDE SYS_CHROOT",
)


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


def test_is_small_and_holds_little(docker: Docker, image: str, tmp_path: Path) -> None:
    assert int(docker.call("image", "inspect", "--format={{.Size}}", image)) < SIZE_LIMIT_BYTES
    container = docker.call("create", image)
    docker.call("cp", f"{container}:/", str(tmp_path / "root"))
    docker.call("rm", container)
    # The runtime adds its own mount points and files.
    runtime = {".dockerenv", "dev", "etc", "proc", "sys"}
    root = tmp_path / "root"
    assert {path.name for path in root.iterdir()} - runtime == {"argusd", "bin", "janusd", "licenses", "tmp"}
    assert [path.name for path in (root / "bin").iterdir()] == ["grpc_health_probe"]
    parts = json.loads((root / "licenses" / "argusd.cdx.json").read_text())["components"]
    assert {"grpcio", "glibc", "openssl", "github.com/grpc-ecosystem/grpc-health-probe"} <= {
        part["name"] for part in parts
    }
    assert len(list(root.glob("licenses/*/*"))) > len(parts)  # the project's own beside them


def test_flags_may_follow_the_image(docker: Docker, image: str) -> None:
    assert docker.call("run", "--rm", image, "-version").startswith("argusd version ")
    assert docker.call("run", "--rm", "--entrypoint=/janusd", image, "-version").startswith("janusd version ")


def test_answers_the_probe_that_existing_manifests_call(docker: Docker, image: str, name: str) -> None:
    with agent(docker, name, image, MANIFEST.flags, "openat2") as daemon:
        probe = ("/bin/grpc_health_probe", "-addr", daemon.address)
        docker.exec(name, *probe)
        docker.exec(name, *probe, "-service", "argus.Argusd", "-connect-timeout=1s", "-rpc-timeout=1s", "-v")
        with pytest.raises(RuntimeFailedError, match=f"exit {PROBE_NOT_SERVED}: "):
            docker.exec(name, *probe, "-service", "janus.Janusd")
        assert daemon.stop() == 0


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
    flags = (f"--name={name}", "--network=host", *NODE_AGENT, *rights, f"--entrypoint={program}")
    run = docker.command("run", *flags, image)
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


def warnings(daemon: PlacedDaemon) -> list[str]:
    return [line for line in daemon.lines if '"WARNING"' in line]


def check_rights(docker: Docker, name: str, wanted: Rights) -> None:
    assert is_confined(docker, name)
    assert wanted.has <= capabilities(docker, name)
    assert not wanted.lacks & capabilities(docker, name)


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


@pytest.mark.parametrize(
    ("wanted", "enter"),
    [(MANIFEST, "openat2"), (MANIFEST, "setns"), (LEAST_TO_WATCH, "openat2")],
    ids=["manifest-openat2", "manifest-setns", "least-openat2"],
)
def test_watches_another_container(
    docker: Docker, image: str, name: str, wanted: Rights, enter: str, tmp_path: Path
) -> None:
    with agent(docker, name, image, wanted.flags, enter) as daemon:
        assert health(daemon.channel) == SERVING
        assert warnings(daemon) == []
        check_rights(docker, name, wanted)

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


@pytest.mark.parametrize(
    ("wanted", "enter", "audit"),
    [
        (MANIFEST, "openat2", True),
        (MANIFEST, "setns", False),
        (LEAST_TO_GUARD, "openat2", False),
        (LEAST_TO_AUDIT, "openat2", True),
        (LEAST_TO_ENTER, "setns", False),
    ],
    ids=["manifest-openat2-audit", "manifest-setns", "least-openat2", "least-openat2-audit", "least-setns"],
)
def test_guards_another_container(
    docker: Docker, image: str, name: str, wanted: Rights, enter: str, *, audit: bool
) -> None:
    with agent(docker, name, image, wanted.flags, enter, "/janusd") as daemon:
        assert len(warnings(daemon)) == ("AUDIT_WRITE" in wanted.lacks)
        check_rights(docker, name, wanted)
        box = docker.run()
        docker.exec(box, "sh", "-c", CLOSED)
        assert guard(daemon, docker.uri(box), audit=audit) == [docker.pid(box)]
        # As root of the container, who may read them: only the guard refuses.
        docker.exec(
            box, "sh", "-c", "cat /root/public && ! cat /root/secret && ! ls /root/closed/in && ls /root/closed"
        )
        daemon.wait_for_text("<ALLOW> OPEN_PERM file '/root/public' (p:n)")
        daemon.wait_for_text("<DENY> OPEN_PERM file '/root/secret' (p:n)")
        daemon.wait_for_text("<DENY> OPEN_PERM directory '/root/closed/in' (p:n)")
        docker.remove(box)
        until(lambda: daemon.guard_state() == [], STOP_TIMEOUT_S, "a state without the pod")
        assert daemon.stop() == 0


@pytest.mark.skipif(bool(opening.missing()), reason=opening.missing() or "files can be opened here")
@pytest.mark.parametrize("enter", ["openat2", "setns"])
def test_refuses_everybody_who_is_refused_by_a_daemon_of_the_node(
    docker: Docker, image: str, name: str, enter: str
) -> None:
    rights = MANIFEST if enter == "setns" else LEAST_TO_GUARD
    with agent(docker, name, image, rights.flags, enter, "/janusd") as daemon, Stage(docker, daemon) as stage:
        for story in parse(STORIES):
            stage.play(story)


def test_what_it_has_not_the_rights_for_is_refused_by_name(docker: Docker, image: str, name: str) -> None:
    box = docker.run()
    docker.exec(box, "sh", "-c", CLOSED)
    with agent(docker, name, image, LEAST_TO_GUARD.flags, "openat2", "/janusd") as daemon:
        assert "CAP_AUDIT_WRITE: guards with `audit` are refused" in warnings(daemon)[0]
        assert refusal(daemon, docker.uri(box), audit=True) == (
            f"cannot guard container {box} with `audit`: fanotify_init(2) is not permitted: "
            "the daemon lacks CAP_AUDIT_WRITE"
        )
        assert daemon.guard_state() == []
        docker.exec(box, "cat", "/root/secret")
        assert guard(daemon, docker.uri(box)) == [docker.pid(box)]
        assert refusal(daemon, docker.uri(box), audit=True)
        docker.exec(box, "sh", "-c", "! cat /root/secret")  # a refused change changes nothing
        assert daemon.stop() == 0
    docker.call("rm", name)
    with agent(docker, name, image, LEAST_TO_WATCH.flags, "openat2", "/janusd") as daemon:
        assert "CAP_SYS_ADMIN: nothing is guarded, because fanotify_init needs it" in warnings(daemon)[0]
        assert refusal(daemon, docker.uri(box)) == (
            f"cannot guard container {box}: fanotify_init(2) is not permitted: the daemon lacks CAP_SYS_ADMIN"
        )
        assert daemon.guard_state() == []
        docker.exec(box, "cat", "/root/secret")
        assert daemon.stop() == 0
    docker.remove(box)


def guard(daemon: PlacedDaemon, uri: str, *, audit: bool = False) -> list[int]:
    subject = janus_pb2.JanusGuardSubject(
        deny=["/root/secret", "/root/closed/in"], allow=["/root/public"], event=["open"], audit=audit
    )
    config = janus_pb2.JanusdConfig(name="g", nodeName="n", podName="p", cid=[uri], subject=[subject])
    return list(daemon.guards.CreateGuard(config, timeout=STOP_TIMEOUT_S).pid)


def refusal(daemon: PlacedDaemon, uri: str, *, audit: bool = False) -> str:
    with pytest.raises(grpc.RpcError) as failure:
        guard(daemon, uri, audit=audit)
    assert failure.value.code() == grpc.StatusCode.PERMISSION_DENIED
    return str(failure.value.details())
