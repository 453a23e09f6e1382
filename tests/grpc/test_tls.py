"""Mutual TLS: who gets in, and what is said about files that cannot be used."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509

from argusd import tls
from argusd.proto import argus_pb2, argus_pb2_grpc
from tests.daemon import WAIT_S, Daemon, run_to_end
from tests.grpc.authority import Authority, Files, Pair

LISTEN = ("-address=127.0.0.1:0", "-log_dir=")


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority("ours")


@pytest.fixture(scope="module")
def files(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files.make(authority, tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def daemon(files: Files) -> Iterator[Daemon]:
    with Daemon(*files.flags()) as daemon:
        yield daemon


def credentials(authority: Authority, client: Pair | None) -> grpc.ChannelCredentials:
    if client is None:
        return grpc.ssl_channel_credentials(authority.certificate)
    return grpc.ssl_channel_credentials(authority.certificate, client.key, client.certificate)


def ask(address: str, credentials: grpc.ChannelCredentials | None) -> None:
    options = [("grpc.use_local_subchannel_pool", 1)]
    channel = (
        grpc.insecure_channel(address, options)
        if credentials is None
        else grpc.secure_channel(address, credentials, options)
    )
    with channel:
        assert list(argus_pb2_grpc.ArgusdStub(channel).GetWatchState(argus_pb2.Empty(), timeout=WAIT_S)) == []


def test_client_with_a_certificate_of_our_authority_is_served(daemon: Daemon, authority: Authority) -> None:
    ask(daemon.address, credentials(authority, authority.issue("client")))


def test_a_certificate_that_soon_expires_is_a_warning(daemon: Daemon) -> None:
    line = daemon.wait_for_text("(-tlscertfile) expires at ")
    assert '"level":"WARNING"' in line


def test_what_is_said_of_a_certificate_depends_on_how_long_it_is_valid(files: Files) -> None:
    expires = tls.expiry(files.certificate)
    assert expires == x509.load_pem_x509_certificate(Path(files.certificate).read_bytes()).not_valid_after_utc
    for days, level in ((-1, logging.ERROR), (29, logging.WARNING)):
        line = tls.expiry_line("server.pem", expires, expires - timedelta(days=days))
        assert line is not None
        assert line[0] == level
        assert f"{expires:%Y-%m-%dT%H:%M:%SZ}" in line[1]
    assert tls.expiry_line("server.pem", expires, expires - timedelta(days=31)) is None
    assert tls.expiry("/dev/null") is None


def test_client_without_a_certificate_is_refused(daemon: Daemon, authority: Authority) -> None:
    with pytest.raises(grpc.RpcError) as failure:
        ask(daemon.address, credentials(authority, None))
    assert failure.value.code() == grpc.StatusCode.UNAVAILABLE


def test_client_of_another_authority_is_refused(daemon: Daemon, authority: Authority) -> None:
    with pytest.raises(grpc.RpcError) as failure:
        ask(daemon.address, credentials(authority, Authority("theirs").issue("client")))
    assert failure.value.code() == grpc.StatusCode.UNAVAILABLE


def test_plaintext_is_refused(daemon: Daemon) -> None:
    with pytest.raises(grpc.RpcError) as failure:
        ask(daemon.address, None)
    assert failure.value.code() == grpc.StatusCode.UNAVAILABLE


def test_a_refused_client_leaves_the_daemon_unharmed(daemon: Daemon, authority: Authority) -> None:
    with pytest.raises(grpc.RpcError):
        ask(daemon.address, None)
    ask(daemon.address, credentials(authority, authority.issue("client")))


@pytest.mark.parametrize("missing", ["certificate", "key"])
def test_tls_without_certificate_or_key_exits(files: Files, missing: str) -> None:
    result = run_to_end(*LISTEN, *files.flags(**{missing: ""}))
    assert result.returncode == 1
    assert "Certificate/private key not supplied (with -tls flag)." in result.stderr


def test_tls_without_an_authority_exits(files: Files) -> None:
    result = run_to_end(*LISTEN, *files.flags(ca=""))
    assert result.returncode == 1
    assert "-tlscafile" in result.stderr


@pytest.mark.parametrize("which", ["ca", "certificate", "key"])
@pytest.mark.parametrize(
    "content", [None, b"", b"nonsense", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_each_bad_file_is_named(files: Files, which: str, content: bytes | None, tmp_path: Path) -> None:
    bad = tmp_path / "bad.pem"
    if content is not None:
        bad.write_bytes(content)
    result = run_to_end(*LISTEN, *files.flags(**{which: str(bad)}))
    assert result.returncode == 1
    assert str(bad) in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_folder_in_place_of_a_file_is_named(files: Files, tmp_path: Path) -> None:
    result = run_to_end(*LISTEN, *files.flags(key=str(tmp_path)))
    assert result.returncode == 1
    assert str(tmp_path) in result.stderr


def test_a_key_of_another_certificate_is_named(files: Files, authority: Authority, tmp_path: Path) -> None:
    _, other_key = authority.issue("other").write(tmp_path, "other")
    result = run_to_end(*LISTEN, *files.flags(key=other_key))
    assert result.returncode == 1
    assert other_key in result.stderr
    assert "not the private key" in result.stderr


def test_an_encrypted_key_is_named_and_no_password_asked_for(
    files: Files, authority: Authority, tmp_path: Path
) -> None:
    _, key = authority.issue("server", password=b"secret").write(tmp_path, "locked")
    result = run_to_end(*LISTEN, *files.flags(key=key))
    assert result.returncode == 1
    assert key in result.stderr
    assert "encrypted" in result.stderr


def test_files_without_the_flag_are_a_warning_and_plaintext(files: Files) -> None:
    with Daemon("-log=text", *files.flags()[1:]) as daemon:
        ask(daemon.address, None)
        assert daemon.wait_for(lambda line: line.startswith("W") and "-tls" in line and "plaintext" in line)
