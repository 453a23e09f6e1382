"""dist/argusd, the one file, where there is nothing but itself, /tmp, /proc and /dev."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from pathlib import Path
from typing import Final

import grpc
import pytest

from tests.daemon import Daemon, run_to_end
from tests.e2e.client import SERVING, first_message, health
from tests.grpc.authority import Authority, Files
from tests.waiting import until

PROJECT: Final = Path(__file__).resolve().parents[2]
STOP_TIMEOUT_S: Final = 5.0
# A mount namespace of its own: the mounts go with the daemon, whatever becomes of the test.
ENTER: Final = 'mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && exec chroot "$0" "$@"'

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: chroot and mounts"),
    pytest.mark.timeout(300),  # the first test builds the binary
]


@pytest.fixture(scope="session")
def binary() -> Path:
    subprocess.run(["make", "-C", PROJECT, "build"], check=True, stdin=subprocess.DEVNULL)
    return PROJECT / "dist" / "argusd"


@pytest.fixture
def root(binary: Path, tmp_path: Path) -> Path:
    """A root that holds the binary and three empty folders."""
    for name in ("tmp", "proc", "dev"):
        (tmp_path / name).mkdir()
    (tmp_path / "tmp").chmod(0o1777)
    copy(binary, tmp_path)
    return tmp_path


def copy(binary: Path, folder: Path) -> None:
    (folder / "argusd").write_bytes(binary.read_bytes())
    (folder / "argusd").chmod(0o755)


def in_root(root: Path, program: str = "/argusd") -> list[str]:
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", ENTER, str(root), program]


def test_serves_and_watches_in_an_empty_root(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("watched")
    with Daemon(command=in_root(root)) as daemon:
        assert health(daemon.channel) == SERVING
        daemon.create_watch(os.getpid(), str(folder), event=["create"])
        message = first_message(daemon.channel, lambda name: (folder / name).touch())
        assert (message.argusWatcher, message.event, message.nodeName) == ("w1", "create", "node1")
        daemon.wait_for_text(f"CREATE file '{folder}/0' (pod1:node1)")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_it_in_order_and_leaves_only_its_log(root: Path, number: signal.Signals) -> None:
    with Daemon("-log_dir=/tmp", command=in_root(root)) as daemon:
        daemon.process.send_signal(number)
        assert daemon.process.wait(STOP_TIMEOUT_S) == 0
    assert names(root / "tmp") == {"argusd.INFO"}


def test_terminal_that_interrupts_all_its_processes_ends_it_in_order(root: Path) -> None:
    with Daemon(command=in_root(root)) as daemon:
        for pid in (daemon.pid, *descendants(daemon.pid)):
            os.kill(pid, signal.SIGINT)
        assert daemon.process.wait(STOP_TIMEOUT_S) == 0
    assert names(root / "tmp") == set()


def test_extracted_files_are_for_its_user_alone(root: Path) -> None:
    with Daemon(command=in_root(root)):
        modes = [path.stat().st_mode & 0o777 for path in (root / "tmp").iterdir()]
    assert modes == [0o700, 0o700]


def test_ends_when_its_launcher_is_killed(root: Path) -> None:
    # The launcher passes on SIGTERM and SIGINT only; the daemon must not live on unseen, nor leave its files.
    with Daemon(command=in_root(root)) as daemon:
        rest = [os.pidfd_open(pid) for pid in descendants(daemon.pid)]
        daemon.kill()
        assert len(rest) == 2
        for pidfd in rest:
            assert select.select([pidfd], [], [], STOP_TIMEOUT_S)[0], "a process lives on"
            os.close(pidfd)
    assert names(root / "tmp") == set()


@pytest.mark.parametrize("name", ["/argusd", "/janusd", "/links/janusd"])
def test_knows_the_name_it_was_called_by(root: Path, name: str) -> None:
    (root / "janusd").hardlink_to(root / "argusd")
    (root / "links").mkdir()
    (root / "links" / "janusd").symlink_to("../argusd")
    assert run_to_end("-version", command=in_root(root, name)).stdout.split()[0] == Path(name).name
    assert names(root / "tmp") == set()


def test_serves_guards_under_its_other_name(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    (root / "janusd").symlink_to("argusd")
    file = tmp_path_factory.mktemp("guarded") / "f"
    file.write_text("hello")
    with Daemon(command=in_root(root, "/janusd")) as daemon:
        daemon.create_guard(os.getpid(), str(file))
        with pytest.raises(PermissionError):
            file.read_text()
        daemon.wait_for_text(f"<DENY> OPEN_PERM file '{file}' (pod1:node1)")
        assert daemon.stop(STOP_TIMEOUT_S) == 0
    assert file.read_text() == "hello"
    assert names(root / "tmp") == set()


def test_the_link_beside_it_has_the_other_name(binary: Path) -> None:
    done = run_to_end("-help", command=[str(binary.with_name("janusd"))])
    assert done.stdout.startswith("janusd: allows or denies ")


def test_exit_code_and_message_of_a_mistake_come_through(root: Path) -> None:
    done = run_to_end("-nonsense", command=in_root(root))
    assert done.returncode == 1
    assert "ERROR: unknown command line flag 'nonsense'" in done.stderr
    assert names(root / "tmp") == set()


def test_serves_mutual_tls_as_under_sudo(binary: Path, tmp_path: Path) -> None:
    # sudo leaves next to nothing of the environment, and the folder as it was.
    copy(binary, tmp_path)
    authority = Authority("ours")
    Files.make(authority, tmp_path)
    client = authority.issue("client")
    flags = ["-tls", "-tlscafile", "ca.pem", "-tlscertfile", "server.pem", "-tlskeyfile", "server.key"]
    credentials = grpc.ssl_channel_credentials(authority.certificate, client.key, client.certificate)
    command = ["env", "--ignore-environment", f"--chdir={tmp_path}", "PATH=/usr/bin:/bin", "./argusd"]
    with Daemon(*flags, command=command, credentials=credentials) as daemon:
        assert health(daemon.channel) == SERVING
        with grpc.insecure_channel(daemon.address) as plain, pytest.raises(grpc.RpcError):
            health(plain)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def descendants(pid: int) -> list[int]:
    children = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [*children, *(grandchild for child in children for grandchild in descendants(child))]


def test_what_a_kill_leaves_is_removed_by_the_next_start(binary: Path, tmp_path: Path) -> None:
    environment = {"TMPDIR": str(tmp_path)}
    with Daemon(command=[str(binary)], environment=environment) as daemon:
        left = {path.name for path in tmp_path.iterdir()}
        assert left
        # The launchers first: neither can tidy up, nor can the daemon.
        family = [daemon.pid, *descendants(daemon.pid)]
        for pid in family:
            os.kill(pid, signal.SIGSTOP)
        for pid in family:
            os.kill(pid, signal.SIGKILL)
        daemon.process.wait()
        until(lambda: not any(Path("/proc", str(pid)).exists() for pid in family), "they are gone")
    assert {path.name for path in tmp_path.iterdir()} == left
    with Daemon(command=[str(binary)], environment=environment):
        now = {path.name for path in tmp_path.iterdir()}
        assert not now & left
    assert list(tmp_path.iterdir()) == []
