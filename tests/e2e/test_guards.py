"""Containers as real runtimes make them, guarded by a real janusd: whoever opens what is denied is refused."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Any, Final

import pytest

from tests.e2e import opening
from tests.e2e.guarding import (
    ELSEWHERE,
    NODE,
    RPC_TIMEOUT_S,
    SHARED,
    SINGLE,
    Stage,
    create_guard,
    janusd_command,
    marked,
    mounted_files,
)
from tests.e2e.place import Place, PlacedDaemon, RuntimeFailedError, until
from tests.e2e.runtimes import Cri, Docker, Runtime
from tests.kernel.story import Story, parse
from tests.kernel.volume import Volume

SWAPS: Final = 20

pytestmark = pytest.mark.skipif(bool(opening.missing()), reason=opening.missing() or "files can be opened here")

STORIES = r"""
nobody can use what is denied, in whatever way
    write      /data/f
    program    /data/run
    makedirs   /data/closed
    guard      deny=/data/f,/data/run,/data/closed
    exec open  /data/f               -> EPERM
                                     -> DENY OPEN_PERM file /data/f
    exec read  /data/f; exec map /data/f; exec open_to_write /data/f -> EPERM
                                     -> EPERM
                                     -> EPERM
                                     -> DENY OPEN_PERM file /data/f
                                     -> DENY OPEN_PERM file /data/f
                                     -> DENY OPEN_PERM file /data/f
    exec exec  /data/run             -> EPERM
                                     -> DENY OPEN_PERM file /data/run
    exec list  /data/closed          -> EPERM
                                     -> DENY OPEN_PERM directory /data/closed
    exec stat  /data/f
    unguard
    exec read  /data/f
    exec exec  /data/run
    exec list  /data/closed

neither its own processes, nor an exec's, nor the node's
    write      /data/f
    guard      deny=/data/f
    init open  /data/f               -> EPERM
                                     -> DENY OPEN_PERM file /data/f
    child open /data/f               -> EPERM
                                     -> DENY OPEN_PERM file /data/f
    exec open  /data/f               -> EPERM
                                     -> DENY OPEN_PERM file /data/f
    host open  /data/f               -> EPERM
                                     -> DENY OPEN_PERM file /data/f
    node open  /data/f               -> EPERM
                                     -> DENY OPEN_PERM file /data/f

nor who is outside of the daemon's PID namespace
    write      /data/f
    guard      deny=/data/f
    stranger open /data/f            -> EPERM
                                     -> DENY OPEN_PERM file /data/f

a file of the image, before and after it is copied to the container's own layer
    guard      deny=/etc/passwd autoAllowOwner
    exec open  /etc/passwd           -> EPERM
                                     -> DENY OPEN_PERM file /etc/passwd
    node open  /etc/passwd           -> EPERM
                                     -> DENY OPEN_PERM file /etc/passwd
    init open_to_write /etc/passwd   -> ALLOW OPEN_PERM file /etc/passwd
    exec open  /etc/passwd           -> EPERM
                                     -> DENY OPEN_PERM file /etc/passwd
    node open  /etc/passwd           -> EPERM
                                     -> DENY OPEN_PERM file /etc/passwd
    exec open  /etc/group; neighbour open /etc/passwd

a directory with what is in it, and nothing below that
    makedirs   /data/sub/deep
    write      /data/f
    write      /data/sub/g
    guard      deny=/data
    exec open_to_create /data/new    -> EPERM
                                     -> DENY OPEN_PERM file /data/new
    exec mkdir /data/made; exec list /data/made -> EPERM
                                     -> DENY OPEN_PERM directory /data/made
    exec open  /data/f               -> EPERM
                                     -> DENY OPEN_PERM file /data/f
    exec open  /data/sub/g; exec list /data/sub/deep
    node list  /data/sub             -> EPERM
                                     -> DENY OPEN_PERM directory /data/sub

what opens nothing goes on, and another name of a denied file is as good as it
    write      /data/f
    guard      deny=/data/f
    exec stat  /data/f; exec open_path /data/f; exec link /data/f /tmp/link
    exec open  /tmp/link             -> EPERM
                                     -> DENY OPEN_PERM file /data/f
    exec unlink /tmp/link; exec unlink /data/f

what is made later is denied from the beginning, and a file that is saved anew stays so
    write      /data/f
    guard      deny=/data/f,/data/later
    exec open_to_create /data/later  -> EPERM
                                     -> DENY OPEN_PERM file /data/later
    init open  /data/later           -> EPERM
                                     -> DENY OPEN_PERM file /data/later
    exec open_to_create /data/f.new; exec rename /data/f.new /data/f; exec open /data/f -> EPERM
                                     -> DENY OPEN_PERM file /data/f

the owner and its children may do what others may not
    write      /data/f
    program    /data/run
    guard      deny=/data autoAllowOwner
    init open  /data/f               -> ALLOW OPEN_PERM file /data/f
    child open /data/f               -> ALLOW OPEN_PERM file /data/f
    grandchild open /data/f          -> EPERM
                                     -> DENY OPEN_PERM file /data/f
    init list  /data                 -> ALLOW OPEN_PERM directory /data
    exec open  /data/f               -> EPERM
                                     -> DENY OPEN_PERM file /data/f
    child exec /data/run             -> EPERM
                                     -> DENY OPEN_PERM file /data/run
    init exec  /data/run             -> ALLOW OPEN_PERM file /data/run

who has lost its parent is a child of the owner
    write      /data/f
    guard      deny=/data/f
    orphan open /data/f              -> EPERM
                                     -> DENY OPEN_PERM file /data/f
    guard      deny=/data/f autoAllowOwner
    orphan open /data/f              -> ALLOW OPEN_PERM file /data/f

what is allowed is told of
    write      /data/f
    write      /data/g
    guard      allow=/data deny=/data/g event=all
    exec read  /data/f               -> ALLOW OPEN_PERM file /data/f
                                     -> ALLOW ACCESS_PERM file /data/f
    exec read  /data/g               -> EPERM
                                     -> DENY OPEN_PERM file /data/g

reading alone can be denied
    write      /data/f
    program    /data/run
    guard      deny=/data event=access
    exec open  /data/f
    exec read  /data/f               -> EPERM
                                     -> DENY ACCESS_PERM file /data/f
    exec list  /data                 -> EPERM
                                     -> DENY ACCESS_PERM directory /data
    exec exec  /data/run             -> EPERM
                                     -> DENY ACCESS_PERM file /data/run

a volume is denied to all who have it
    write      /shared/f
    guard      deny=/shared
    exec open  /shared/f             -> EPERM
                                     -> DENY OPEN_PERM file /shared/f
    neighbour open /elsewhere/f      -> EPERM
                                     -> DENY OPEN_PERM file /shared/f
    neighbour list /elsewhere        -> EPERM
                                     -> DENY OPEN_PERM directory /shared
    neighbour open_to_create /elsewhere/g -> EPERM
                                     -> DENY OPEN_PERM file /shared/g
    node open  /shared/f             -> EPERM
                                     -> DENY OPEN_PERM file /shared/f
    unguard
    neighbour open /elsewhere/f

one file of a volume, whoever replaces it
    write      /shared/f
    write      /shared/g
    guard      deny=/shared/f
    neighbour rename /elsewhere/g /elsewhere/f; neighbour open /elsewhere/f; exec open /shared/f -> EPERM
                                     -> EPERM
                                     -> DENY OPEN_PERM file /shared/f
                                     -> DENY OPEN_PERM file /shared/f
    neighbour unlink /elsewhere/f; neighbour open_to_create /elsewhere/f -> EPERM
                                     -> DENY OPEN_PERM file /shared/f

a link does not lead out of the container
    symlink    /../../../../../..{stage.outside} /data/up
    symlink    {stage.outside}       /data/absolute
    guard      deny=/data/up,/data/absolute,/../..{stage.outside}
    outside open
    exec open  /data/up              -> ENOENT
    exec open  /data/absolute        -> ENOENT

a link in the container is followed there
    makedirs   /data/a
    write      /data/a/f
    symlink    /data/a               /data/link
    guard      deny=/data/link/f
    exec open  /data/a/f             -> EPERM
                                     -> DENY OPEN_PERM file /data/link/f
    node open  /data/a/f             -> EPERM
                                     -> DENY OPEN_PERM file /data/link/f
"""


@pytest.fixture(scope="module")
def janusd(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlacedDaemon]:
    command = janusd_command(tmp_path_factory.mktemp("program"), sys.executable)
    with PlacedDaemon(place, "-log=json", command=command) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def stage(runtime: Runtime, janusd: PlacedDaemon) -> Iterator[Stage]:
    with Stage(runtime, janusd) as stage:
        yield stage


@pytest.mark.parametrize("story", parse(STORIES), ids=lambda story: story.title.replace(" ", "_"))
def test_story(stage: Stage, story: Story) -> None:
    stage.play(story)


def test_what_a_runtime_executes_is_refused_like_everything_else(stage: Stage) -> None:
    with stage.act():
        for name in ("f", "g"):
            stage.world.path(f"/data/{name}").touch()
        stage.guard(deny=["/data/f", "/bin/busybox"], autoAllowOwner=True)
        with pytest.raises(RuntimeFailedError, match=r"(?i)operation not permitted"):
            stage.runtime.exec(stage.container, "true")
        stage.guard(deny=["/data/f"])
        with pytest.raises(RuntimeFailedError):  # ctr does not always tell what a short command says
            stage.runtime.exec(stage.container, "cat", "/data/f")
        stage.runtime.exec(stage.container, "cat", "/data/g")
        assert [event["path"] for event in stage.events()] == ["/bin/busybox", "/data/f"]


def test_answer_state_and_lines_name_the_container(stage: Stage) -> None:
    with stage.act():
        stage.world.path("/data/f").touch()
        pids = stage.guard(
            deny=["/data/f"],
            tags={"b": "2", "a": "1"},
            logFormat="{{{response:>6}}} {event} {path} {ftype} {pod}@{node} {tags}",
        )
        assert pids == [stage.pid]
        assert (NODE, stage.pod, [stage.pid]) in stage.daemon.guard_state()
        assert stage.do("exec", "open", "/data/f") == "EPERM"
        (event,) = stage.events()
        assert event.pop("timestamp")
        assert event == {
            "level": "INFO",
            "logger": "janusd.events",
            "message": f"{{  DENY}} OPEN_PERM /data/f file {stage.pod}@{NODE} a=1,b=2",
            "response": "DENY",
            "event": "OPEN_PERM",
            "ftype": "file",
            "path": "/data/f",
            "pod": stage.pod,
            "node": NODE,
            "guard": "g",
            "container": stage.container,
            "tags": {"a": "1", "b": "2"},
        }


def test_files_that_are_mounted_one_by_one_are_guarded_with_their_directory(stage: Stage) -> None:
    files = mounted_files(stage.process, "/etc")
    assert SINGLE in files
    assert "/etc/hosts" in files or not isinstance(stage.runtime, Docker | Cri)
    with stage.act():
        stage.guard(deny=["/etc"])
        for file in files:
            for who in ("exec", "host"):
                assert stage.do(who, "open", file) == "EPERM", (who, file)
        assert stage.openers["node"].do("open", stage.folder / "single.conf") == "EPERM"
        told = [event["path"] for event in stage.events()]
        assert told == [file for file in files for _ in range(2)] + [SINGLE]


def test_file_that_is_mounted_alone_can_be_guarded_by_its_name(stage: Stage) -> None:
    with stage.act():
        stage.guard(deny=[SINGLE])
        assert stage.do("exec", "read", SINGLE) == "EPERM"
        assert stage.do("exec", "open_to_write", SINGLE) == "EPERM"
        assert stage.do("exec", "open", "/etc/passwd") == ""


@pytest.mark.parametrize(
    ("path", "kubelet"),
    [
        ("/shared/config/key", nullcontext()),
        ("/shared/config/..data/key", nullcontext()),
        # What it has to list is denied to it as well: the old version is left behind.
        ("/shared/config", pytest.raises(PermissionError)),
        ("/shared/config/..data", suppress(PermissionError)),  # that is no longer what the path stands for, or soon
    ],
)
def test_key_of_a_configmap_stays_guarded_over_updates(
    stage: Stage, path: str, kubelet: AbstractContextManager[Any]
) -> None:
    with stage.act():
        volume = Volume(stage.shared / "config")
        volume.update({"key": b"0", "other": b"0"})
        stage.guard(deny=[path])
        for number in range(1, SWAPS):
            assert stage.do("exec", "read", f"{SHARED}/config/key") == "EPERM"
            assert stage.do("neighbour", "read", f"{ELSEWHERE}/config/key") == "EPERM"
            with kubelet:
                volume.update({"key": str(number).encode(), "other": b"0"})
            until(lambda: stage.do("exec", "open", f"{SHARED}/config/key") == "EPERM", RPC_TIMEOUT_S, "the new key")


def test_end_of_the_container_ends_its_guard(stage: Stage) -> None:
    state = stage.daemon.guard_state()
    file = stage.shared / "f"
    file.touch()
    with stage.act(), stage.running("/volume") as container:
        create_guard(stage.daemon, stage.pod, stage.runtime.uri(container), deny=["/volume", "/volume/f"])
        assert guarded(stage) == [[stage.runtime.pid(container)]]
        assert stage.do("neighbour", "open", f"{ELSEWHERE}/f") == "EPERM"
        assert {stage.shared.stat().st_ino, file.stat().st_ino} <= marked(stage.daemon)
        stage.runtime.remove(container)
        until(lambda: stage.daemon.guard_state() == state, RPC_TIMEOUT_S, "a state without the pod")
        until(lambda: stage.do("neighbour", "open", f"{ELSEWHERE}/f") == "", RPC_TIMEOUT_S, "the volume is open")
        # A mark that nobody needs goes when something is opened by it.
        until(lambda: not opened_by_a_mark(stage, file), RPC_TIMEOUT_S, "neither is marked")


def opened_by_a_mark(stage: Stage, file: Path) -> bool:
    assert stage.do("neighbour", "open", f"{ELSEWHERE}/{file.name}") == ""
    return bool({file.stat().st_ino, file.parent.stat().st_ino} & marked(stage.daemon))


@pytest.mark.parametrize("runtime", ["docker"], indirect=True)
def test_restart_under_the_same_id(stage: Stage) -> None:
    assert isinstance(stage.runtime, Docker)
    with stage.act(), stage.running("/volume") as container:
        first = stage.runtime.pid(container)
        uri = stage.runtime.uri(container)
        assert create_guard(stage.daemon, stage.pod, uri, deny=["/volume/f"]) == [first]
        stage.runtime.restart(container)
        until(lambda: not guarded(stage), RPC_TIMEOUT_S, "a state without the pod")
        stage.shared.joinpath("f").touch()
        stage.runtime.exec(container, "cat", "/volume/f")

        second = stage.runtime.pid(container)
        assert create_guard(stage.daemon, stage.pod, uri, deny=["/volume/f"]) == [second]
        assert guarded(stage) == [[second]]
        with pytest.raises(RuntimeFailedError):
            stage.runtime.exec(container, "cat", "/volume/f")


@pytest.mark.parametrize("runtime", ["cri"], indirect=True)
def test_restart_under_a_new_id(stage: Stage) -> None:
    assert isinstance(stage.runtime, Cri)
    with stage.act(), ExitStack() as stack:
        first = stack.enter_context(stage.running("/volume"))
        stage.shared.joinpath("f").touch()
        create_guard(stage.daemon, stage.pod, stage.runtime.uri(first), deny=["/volume/f", "/data/f"])
        second = stage.runtime.replace(first)
        stack.callback(stage.runtime.remove, second)
        # It takes the place of the first in the guard, and a controller that does not know that asks for it again.
        until(lambda: guarded(stage) == [[stage.runtime.pid(second)]], RPC_TIMEOUT_S, "the new container in the state")

        pids = create_guard(stage.daemon, stage.pod, stage.runtime.uri(second), deny=["/volume/f", "/data/f"])
        assert guarded(stage) == [pids] == [[stage.runtime.pid(second)]]
        for path in ("/volume/f", "/data/f"):
            with pytest.raises(RuntimeFailedError):
                stage.runtime.exec(second, "sh", "-c", f": >>{path}")
        assert [(event["path"], event["container"]) for event in stage.events()] == [
            ("/volume/f", second),
            ("/data/f", second),
        ]


def guarded(stage: Stage) -> list[list[int]]:
    """The containers of this act's pod, by the pids in the state."""
    return [pids for node, pod, pids in stage.daemon.guard_state() if (node, pod) == (NODE, stage.pod)]
