"""dist/argusd, the one file, where there is nothing but itself, /tmp, /proc and /dev."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import select
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from argusd.proto import argus_pb2
from demo.daemon import free_port
from tests.e2e.client import SERVING, START_TIMEOUT_S, create_watch, first_message, health

PROJECT: Final = Path(__file__).resolve().parents[2]
STOP_TIMEOUT_S: Final = 5.0
# A mount namespace of its own: the mounts go with the daemon, whatever becomes of the test.
IN_ROOT: Final = """
mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && exec chroot "$0" "$@"
"""

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
    (tmp_path / "argusd").write_bytes(binary.read_bytes())
    (tmp_path / "argusd").chmod(0o755)
    return tmp_path


def in_root(root: Path, *argv: str) -> list[str]:
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", IN_ROOT, str(root), *argv]


class Running:
    """The daemon in an empty root, with its log in a file."""

    def __init__(
        self, root: Path, arguments: Sequence[str] = (), credentials: grpc.ChannelCredentials | None = None
    ) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self.log = root.with_name(root.name + ".log")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                in_root(root, "/argusd", f"-address={self.address}", *arguments), stderr=log, stdin=subprocess.DEVNULL
            )
        if credentials is None:
            self.channel = grpc.insecure_channel(self.address)
        else:
            name = ("grpc.ssl_target_name_override", "localhost")
            self.channel = grpc.secure_channel(self.address, credentials, options=[name])

    def __enter__(self) -> Self:
        try:
            grpc.channel_ready_future(self.channel).result(START_TIMEOUT_S)
        except grpc.FutureTimeoutError:
            self.__exit__()
            raise AssertionError(f"not serving:\n{self.log.read_text()}") from None
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_TIMEOUT_S)
            self.process.kill()
        self.process.wait()

    def stop(self, number: signal.Signals) -> int:
        self.channel.close()
        self.process.send_signal(number)
        return self.process.wait(STOP_TIMEOUT_S)


def test_serves_and_watches_in_an_empty_root(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("watched")
    with Running(root) as daemon:
        assert health(daemon.channel) == SERVING

        subject = argus_pb2.ArgusWatcherSubject(path=[str(folder)], event=["create"])
        config = argus_pb2.ArgusdConfig(name="w", nodeName="n", podName="p", pid=[os.getpid()], subject=[subject])
        assert create_watch(daemon.channel, config).nodeName == "n"
        message = first_message(daemon.channel, lambda name: (folder / name).touch())
        assert (message.argusWatcher, message.event, message.nodeName) == ("w", "create", "n")
        assert daemon.stop(signal.SIGTERM) == 0
    assert f"CREATE file '{folder}/0' (p:n)" in daemon.log.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_it_in_order_and_leaves_only_its_log(root: Path, number: signal.Signals) -> None:
    with Running(root) as daemon:
        assert daemon.stop(number) == 0
    assert names(root / "tmp") <= {"argusd.INFO"}


def test_extracted_files_are_only_for_its_user(root: Path) -> None:
    with Running(root, ["-log_dir="]):
        modes = {path.name: path.stat().st_mode & 0o777 for path in (root / "tmp").iterdir()}
    assert len(modes) == 2, modes
    assert set(modes.values()) == {0o700}


def test_ends_when_its_launcher_is_killed(root: Path) -> None:
    # The launcher passes on SIGTERM and SIGINT only; the daemon must not live on unseen, nor leave its files.
    with Running(root, ["-log_dir="]) as daemon:
        stopped = [os.pidfd_open(pid) for pid in descendants(daemon.process.pid)]
        assert daemon.stop(signal.SIGKILL) == -signal.SIGKILL
        assert len(stopped) == 2
        for pidfd in stopped:
            assert select.select([pidfd], [], [], STOP_TIMEOUT_S)[0], "a process lives on"
            os.close(pidfd)
    assert names(root / "tmp") == set()


def test_knows_the_name_it_was_called_by(root: Path) -> None:
    (root / "links").mkdir()
    (root / "links" / "janusd").symlink_to("../argusd")
    (root / "janusd").hardlink_to(root / "argusd")
    for argv, name in (("/argusd", "argusd"), ("/janusd", "janusd"), ("/links/janusd", "janusd")):
        done = subprocess.run(in_root(root, argv, "-version"), capture_output=True, text=True, check=True)
        assert done.stdout.split()[0] == name, done
    assert names(root / "tmp") == set()


def test_exit_code_and_message_of_a_mistake_come_through(root: Path) -> None:
    done = subprocess.run(in_root(root, "/argusd", "-nonsense"), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ERROR: unknown command line flag 'nonsense'" in done.stderr
    assert names(root / "tmp") == set()


def test_serves_mutual_tls(root: Path) -> None:
    pki = make_pki()
    (root / "ca.pem").write_bytes(pki.authority)
    (root / "cert.pem").write_bytes(pki.certificate)
    (root / "key.pem").write_bytes(pki.key)
    flags = ["-tls", "-tlscafile", "/ca.pem", "-tlscertfile", "/cert.pem", "-tlskeyfile", "/key.pem"]
    credentials = grpc.ssl_channel_credentials(pki.authority, pki.key, pki.certificate)
    with Running(root, flags, credentials) as daemon:
        assert health(daemon.channel) == SERVING
        with grpc.insecure_channel(daemon.address) as plain, pytest.raises(grpc.RpcError):
            health(plain)
        assert daemon.stop(signal.SIGTERM) == 0


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def descendants(pid: int) -> list[int]:
    children = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [*children, *(pid for child in children for pid in descendants(child))]


@dataclass(frozen=True, slots=True)
class Pki:
    """A throw-away authority and one certificate for both sides, as PEM."""

    authority: bytes
    certificate: bytes
    key: bytes


def make_pki() -> Pki:
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority, name = common_name("throw-away authority"), common_name("localhost")
    return Pki(
        authority=pem(
            unsigned(authority, authority, authority_key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(authority_key, hashes.SHA256())
        ),
        certificate=pem(
            unsigned(name, authority, key.public_key())
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
            .sign(authority_key, hashes.SHA256())
        ),
        key=key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    )


def common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


def unsigned(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
    )


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
