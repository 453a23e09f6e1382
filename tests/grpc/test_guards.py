"""Guards of local processes: what is denied and allowed, create, update, destroy, state, end."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from argusd.proto import janus_pb2
from tests.daemon import WAIT_S, Daemon, until
from tests.grpc.conftest import Workload
from tests.kernel.silent_fuse import SilentFileSystem
from tests.kernel.test_guards import Unanswered

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: fanotify_init takes CAP_SYS_ADMIN")

Pod = Callable[[], int]
DENIED = "EPERM"


@pytest.fixture(scope="module")
def janusd() -> Iterator[Daemon]:
    """One daemon for the tests of this file; each leaves it without guards."""
    with Daemon("-log=json", "-services=janus") as daemon:
        yield daemon


@pytest.fixture(autouse=True)
def clean(janusd: Daemon, workload: Workload) -> Iterator[None]:
    yield
    workload.end_all()  # the daemon drops guards whose processes have ended
    until(lambda: not janusd.guard_state(), "no guard is left")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two files, and a directory with a file."""
    folder = tmp_path / "d"
    (folder / "sub").mkdir(parents=True)
    for name in ("f", "g", "sub/h"):
        (folder / name).write_text("hello")
    return folder


def use(path: Path, how: int = os.O_RDONLY) -> str:
    """Open a file, and read it when that is possible: its text, or the name of the error."""
    try:
        fd = os.open(path, how | os.O_CLOEXEC)
    except OSError as error:
        return f"open: {errno.errorcode[error.errno or 0]}"
    try:
        return os.read(fd, 100).decode() if how & os.O_ACCMODE != os.O_WRONLY else "open"
    except OSError as error:
        return f"read: {errno.errorcode[error.errno or 0]}"
    finally:
        os.close(fd)


def listing(path: Path) -> str:
    try:
        return " ".join(sorted(entry.name for entry in path.iterdir()))
    except PermissionError:
        return DENIED


def answers(daemon: Daemon, folder: Path, count: int) -> list[str]:
    """What was told about a folder and all below, when as many lines as that are out: response, event, type, path."""

    def found() -> list[dict[str, Any]]:
        return [record for record in daemon.events if Path(record["path"]).is_relative_to(folder)]

    until(lambda: len(found()) >= count, f"{count} answers about {folder}")
    return [
        " ".join((one["response"], one["event"], one["ftype"], os.path.relpath(one["path"], folder))) for one in found()
    ]


def destroy(daemon: Daemon, node: str, pod: str, *pids: int, name: str = "") -> None:
    request = janus_pb2.JanusdConfig(nodeName=node, podName=pod, name=name, pid=pids)
    assert daemon.guards.DestroyGuard(request, timeout=WAIT_S) == janus_pb2.Empty()


def refusal(daemon: Daemon, pid: int, *deny: str) -> tuple[grpc.StatusCode, str]:
    """How a CreateGuard fails."""
    with pytest.raises(grpc.RpcError) as failure:
        daemon.create_guard(pid, *deny)
    return failure.value.code(), str(failure.value.details())


def test_a_denied_file_cannot_be_opened_and_that_is_told(janusd: Daemon, pod: Pod, folder: Path) -> None:
    pid, file, seen = pod(), folder / "f", len(janusd.lines)
    handle = janusd.create_guard(pid, str(file), tags={"b": "2", "a": "1"})
    janusd.wait_for_text("Starting `fanotify` guard (pod1:node1)", after=seen)
    assert (handle.nodeName, handle.podName, list(handle.pid)) == ("node1", "pod1", [pid])
    assert list(handle.processEventfd) == [0]  # one for each pid, as the original had; ours are of no use to others
    assert use(file) == "open: EPERM"
    assert use(folder / "g") == "hello"
    assert answers(janusd, folder, 1) == ["DENY OPEN_PERM file f"]
    record = next(record for record in janusd.events if record["path"] == str(file))
    assert record.pop("timestamp")
    assert record == {
        "level": "INFO",
        "logger": "janusd.events",
        "message": f"<DENY> OPEN_PERM file '{file}' (pod1:node1) a=1,b=2",
        "response": "DENY",
        "event": "OPEN_PERM",
        "ftype": "file",
        "path": str(file),
        "pod": "pod1",
        "node": "node1",
        "guard": "g1",
        "container": "",
        "tags": {"a": "1", "b": "2"},
    }
    assert janusd.guard_state() == [("node1", "pod1", [pid])]


def test_a_path_covers_itself_and_its_direct_children(janusd: Daemon, pod: Pod, folder: Path) -> None:
    janusd.create_guard(pod(), str(folder))
    assert listing(folder) == DENIED
    assert listing(folder / "sub") == DENIED
    assert use(folder / "f") == "open: EPERM"
    assert use(folder / "new", os.O_WRONLY | os.O_CREAT) == "open: EPERM"
    assert use(folder / "sub/h") == "hello"
    assert answers(janusd, folder, 4) == [
        "DENY OPEN_PERM directory .",
        "DENY OPEN_PERM directory sub",
        "DENY OPEN_PERM file f",
        "DENY OPEN_PERM file new",
    ]


def test_what_is_no_open_and_no_read_goes_on(janusd: Daemon, pod: Pod, folder: Path) -> None:
    janusd.create_guard(pod(), str(folder), event=["all"])
    (folder / "made").mkdir()
    assert (folder / "f").stat().st_size == 5
    (folder / "f").rename(folder / "moved")
    (folder / "moved").unlink()
    (folder / "made").rmdir()


def test_reading_can_be_denied_by_itself(janusd: Daemon, pod: Pod, folder: Path) -> None:
    janusd.create_guard(pod(), str(folder / "f"), event=["access"])
    assert use(folder / "f", os.O_WRONLY) == "open"
    assert use(folder / "f") == "read: EPERM"
    assert answers(janusd, folder, 1) == ["DENY ACCESS_PERM file f"]


def test_all_is_both(janusd: Daemon, pod: Pod, folder: Path) -> None:
    janusd.create_guard(pod(), event=["All"], allow=[str(folder / "f")])
    assert use(folder / "f") == "hello"
    assert answers(janusd, folder, 2) == ["ALLOW OPEN_PERM file f", "ALLOW ACCESS_PERM file f"]


def test_deny_beats_allow(janusd: Daemon, pod: Pod, folder: Path) -> None:
    janusd.create_guard(pod(), str(folder), allow=[str(folder / "f"), str(folder / "sub")])
    assert use(folder / "f") == "open: EPERM"
    assert use(folder / "sub/h") == "hello"
    assert answers(janusd, folder, 2) == ["DENY OPEN_PERM file f", "ALLOW OPEN_PERM file sub/h"]


def test_deny_of_one_guard_beats_allow_of_another(janusd: Daemon, pod: Pod, folder: Path) -> None:
    pid = pod()
    janusd.create_guard(pid, name="lax", allow=[str(folder / "f")])
    assert use(folder / "f") == "hello"
    janusd.create_guard(pid, str(folder / "f"), name="strict")
    assert use(folder / "f") == "open: EPERM"
    destroy(janusd, "node1", "pod1", name="strict")
    assert use(folder / "f") == "hello"
    assert janusd.guard_state() == [("node1", "pod1", [pid])]


def test_the_owner_and_its_children_may_be_let_through(janusd: Daemon, folder: Path) -> None:
    """We are the owner, and what we start are its children."""
    janusd.create_guard(os.getpid(), str(folder / "f"), autoAllowOwner=True)
    assert use(folder / "f") == "hello"
    destroy(janusd, "node1", "pod1")
    assert answers(janusd, folder, 1) == ["ALLOW OPEN_PERM file f"]


def test_update_takes_effect_with_its_answer(janusd: Daemon, pod: Pod, folder: Path) -> None:
    pid, seen = pod(), len(janusd.lines)
    janusd.create_guard(pid, str(folder / "f"))
    janusd.create_guard(pid, str(folder / "g"))
    janusd.wait_for_text("Updating `fanotify` guard (pod1:node1)", after=seen)
    assert use(folder / "f") == "hello"
    assert use(folder / "g") == "open: EPERM"
    janusd.create_guard(pid, str(folder / "g"), tags={"k": "v"})
    assert use(folder / "g") == "open: EPERM"
    janusd.wait_for_text(f"<DENY> OPEN_PERM file '{folder / 'g'}' (pod1:node1) k=v", after=seen)
    assert janusd.guard_state() == [("node1", "pod1", [pid])]


def test_same_config_again_changes_nothing(janusd: Daemon, pod: Pod, folder: Path) -> None:
    pid = pod()
    for _ in range(20):
        janusd.create_guard(pid, str(folder / "f"))
        assert use(folder / "f") == "open: EPERM"
    assert answers(janusd, folder, 20) == ["DENY OPEN_PERM file f"] * 20


def test_destroyed_guard_lets_everything_through(janusd: Daemon, pod: Pod, folder: Path) -> None:
    first, second, seen = pod(), pod(), len(janusd.lines)
    janusd.create_guard(first, str(folder / "f"))
    janusd.create_guard(second, str(folder / "g"), podName="pod2")
    destroy(janusd, "node1", "pod1", second)  # the pid is that of another pod
    janusd.wait_for_text("Stopping `fanotify` guard (pod1:node1)", after=seen)
    assert use(folder / "f") == "hello"
    assert use(folder / "g") == "open: EPERM"
    assert janusd.guard_state() == [("node1", "pod2", [second])]
    destroy(janusd, "node1", "nobody")


def test_the_end_of_the_process_ends_the_guard(janusd: Daemon, pod: Pod, workload: Workload, folder: Path) -> None:
    pid, seen = pod(), len(janusd.lines)
    janusd.create_guard(pid, str(folder / "f"))
    workload.end(pid)
    assert janusd.guard_state() == []
    janusd.wait_for_text(f"Process {pid} has ended (pod1:node1)", after=seen)
    until(lambda: use(folder / "f") == "hello", "the file is free")


def test_a_missing_path_is_guarded_from_its_first_moment(janusd: Daemon, pod: Pod, folder: Path) -> None:
    seen, missing = len(janusd.lines), folder / "later"
    janusd.create_guard(pod(), str(missing))
    janusd.wait_for_text(f"'{missing}' does not exist", after=seen)
    assert "not guarded yet" in janusd.wait_for_text(str(missing), after=seen)
    with pytest.raises(PermissionError):
        missing.write_text("x")
    assert use(missing) == "open: EPERM"


def test_a_file_that_is_replaced_stays_guarded(janusd: Daemon, pod: Pod, folder: Path) -> None:
    janusd.create_guard(pod(), str(folder / "f"))
    for _ in range(20):
        (folder / "new").write_text("other")
        (folder / "new").rename(folder / "f")
        assert use(folder / "f") == "open: EPERM"


def test_a_link_is_guarded_for_what_it_leads_to(janusd: Daemon, pod: Pod, folder: Path) -> None:
    (folder / "link").symlink_to("sub/h")
    janusd.create_guard(pod(), str(folder / "link"))
    assert use(folder / "sub/h") == "open: EPERM"
    assert answers(janusd, folder, 1) == ["DENY OPEN_PERM file link"]


def test_only_dir_leaves_files_alone(janusd: Daemon, pod: Pod, folder: Path) -> None:
    janusd.create_guard(pod(), str(folder / "f"), str(folder / "sub"), onlyDir=True)
    assert use(folder / "f") == "hello"
    assert use(folder / "sub/h") == "open: EPERM"


def test_the_daemon_itself_is_never_asked_for(pod: Pod, folder: Path) -> None:
    log = folder / "log"
    log.mkdir()
    with Daemon("-log=json", "-services=janus", f"-log_dir={log}") as daemon:
        daemon.create_guard(pod(), str(log), str(folder), event=["all"])
        assert listing(log) == DENIED
        assert daemon.stop() == 0
    assert "Stopped" in (log / "argusd.INFO").read_text()


def test_a_malformed_format_is_one_warning_and_the_guard_stands(janusd: Daemon, pod: Pod, folder: Path) -> None:
    seen = len(janusd.lines)
    janusd.create_guard(pod(), str(folder / "f"), logFormat="{file}")
    line = janusd.wait_for_text("Malformed JanusGuard `.spec.logFormat`", after=seen)
    assert "WARNING" in line
    assert use(folder / "f") == "open: EPERM"
    janusd.wait_for_text(f"<DENY> OPEN_PERM file '{folder / 'f'}' (pod1:node1) ", after=seen)


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        (
            {"event": ["open", "modify"]},
            grpc.StatusCode.INVALID_ARGUMENT,
            "subject[0].event[1]: 'modify' guards nothing",
        ),
        ({"event": []}, grpc.StatusCode.INVALID_ARGUMENT, "subject: nothing to guard"),
        ({"deny": []}, grpc.StatusCode.INVALID_ARGUMENT, "subject: nothing to guard"),
        ({"pid": []}, grpc.StatusCode.INVALID_ARGUMENT, "cid: neither cid nor pid"),
        ({"pid": [2**22]}, grpc.StatusCode.NOT_FOUND, "no running process found for 4194304"),
    ],
    ids=["unknown event", "no event", "no path", "nobody", "not running"],
)
def test_what_is_refused(
    janusd: Daemon, pod: Pod, folder: Path, fields: dict[str, Any], code: grpc.StatusCode, words: str
) -> None:
    subject = janus_pb2.JanusGuardSubject(
        deny=fields.get("deny", [str(folder / "f")]), event=fields.get("event", ["open"])
    )  # fmt: skip
    request = janus_pb2.JanusdConfig(
        name="g1", nodeName="node1", podName="pod1", pid=fields.get("pid", [pod()]), subject=[subject]
    )
    with pytest.raises(grpc.RpcError) as failure:
        janusd.guards.CreateGuard(request, timeout=WAIT_S)
    assert failure.value.code() == code
    assert words in str(failure.value.details())
    assert use(folder / "f") == "hello"
    assert janusd.guard_state() == []


def test_what_cannot_be_guarded_refuses_the_whole_request(janusd: Daemon, pod: Pod, folder: Path) -> None:
    """The kernel asks nobody about files of proc."""
    pid = pod()
    code, details = refusal(janusd, pid, str(folder / "f"), "/proc/version")
    assert code == grpc.StatusCode.FAILED_PRECONDITION
    assert details.startswith(f"cannot guard '/proc/version' in process {pid}: ")
    assert use(folder / "f") == "hello"
    assert janusd.guard_state() == []


def test_a_file_system_of_a_user_refuses_the_whole_request(janusd: Daemon, pod: Pod, folder: Path) -> None:
    place = folder / "sub"
    try:
        silent = SilentFileSystem(place)
    except OSError as error:
        pytest.skip(f"no FUSE on this machine: {error}")
    with silent:
        pid = pod()
        code, details = refusal(janusd, pid, str(folder / "f"), str(place / "f"))
        assert code == grpc.StatusCode.FAILED_PRECONDITION
        assert details.startswith(f"cannot guard '{place}/f' in process {pid}: ")
        assert "it lies on a file system" in details
        assert use(folder / "f") == "hello"
        assert janusd.guard_state() == []


def test_a_path_that_comes_to_stand_for_what_cannot_be_guarded_is_told(janusd: Daemon, pod: Pod, folder: Path) -> None:
    janusd.create_guard(pod(), str(folder / "f"))
    seen = len(janusd.lines)
    (folder / "link").symlink_to("/proc/version")
    (folder / "link").rename(folder / "f")
    line = janusd.wait_for_text(f"'{folder}/f' has come to stand for what cannot be guarded, and is open", after=seen)
    assert json.loads(line)["level"] == "ERROR"
    assert "(pod1:node1)" in line
    (folder / "g").rename(folder / "f")
    until(lambda: use(folder / "f") == "open: EPERM", "the file in the link's place is guarded")


def test_what_is_not_tried_in_time_is_an_error_within_the_call(janusd: Daemon, pod: Pod, folder: Path) -> None:
    pid = pod()
    request = janus_pb2.JanusdConfig(
        name="g1",
        nodeName="node1",
        podName="pod1",
        pid=[pid],
        subject=[janus_pb2.JanusGuardSubject(deny=[str(folder / "f"), str(folder / "g")], event=["open"])],
    )
    with Unanswered(folder / "g"):
        with pytest.raises(grpc.RpcError) as failure:
            janusd.guards.CreateGuard(request, timeout=1.5)
        assert failure.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert failure.value.details() == "not everything could be guarded in time, so nothing is (pod1:node1)"
        code, details = refusal(janusd, pid, str(folder / "f"), str(folder / "g"))
        assert code == grpc.StatusCode.FAILED_PRECONDITION
        assert f"cannot guard '{folder}/g' in process {pid}: " in details
        assert "does not come back" in details
        assert use(folder / "f") == "hello"
        assert janusd.guard_state() == []
        janusd.create_guard(pid, str(folder / "f"))
        assert use(folder / "f") == "open: EPERM"
    janusd.create_guard(pid, str(folder / "g"))
    assert use(folder / "g") == "open: EPERM"


def test_a_message_that_is_none_is_refused(janusd: Daemon) -> None:
    call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = janusd.channel.unary_unary("/janus.Janusd/CreateGuard")
    with pytest.raises(grpc.RpcError) as failure:
        call(b"\xff\xff", timeout=WAIT_S)
    assert failure.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "janus.JanusdConfig" in str(failure.value.details())
