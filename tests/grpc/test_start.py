"""Start, refusal to start, and where the log goes."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from argusd import server
from tests.daemon import WAIT_S, Daemon, run_to_end

GLOG_PREFIX = re.compile(r"[IWEF]\d{4} \d\d:\d\d:\d\d\.\d{6} \d+ [\w.]+:\d+\] ")


@pytest.mark.parametrize("flag", ["-help", "--help", "-version", "--version"])
def test_help_and_version_exit_0(flag: str) -> None:
    result = run_to_end(flag)
    assert result.returncode == 0
    assert "argusd" in result.stdout
    assert not result.stderr


@pytest.mark.parametrize("flag", ["-x", "--x", "-x=1", "-addres=a:1"])
def test_unknown_flag_exits_1(flag: str) -> None:
    result = run_to_end(flag)
    assert result.returncode == 1
    assert "ERROR: unknown command line flag 'x'" in result.stderr or flag.startswith("-addres")
    assert "ERROR: unknown command line flag" in result.stderr


def test_a_flag_that_is_nearly_one_names_it() -> None:
    lines = run_to_end("-adress=127.0.0.1:0").stderr.splitlines()
    assert lines == ["ERROR: unknown command line flag 'adress'", "Did you mean -address? -help lists all flags."]


@pytest.mark.parametrize("flag", ["-v=loud", "-tls=perhaps", "-log=xml", "-address=nowhere"])
def test_bad_value_exits_1(flag: str) -> None:
    result = run_to_end(flag)
    assert result.returncode == 1
    assert result.stderr.startswith("ERROR: ")


def test_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = run_to_end("-log_dir=", f"-address=127.0.0.1:{port}")
    assert result.returncode == 1
    assert f"127.0.0.1:{port}" in result.stderr
    assert "Address already in use" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_second_daemon_on_one_port_is_refused() -> None:
    with Daemon() as daemon:
        result = run_to_end("-log_dir=", "-address", daemon.address)
    assert result.returncode == 1
    assert daemon.address in result.stderr


def test_an_address_that_is_not_ours_is_named() -> None:
    result = run_to_end("-log_dir=", "-address=192.0.2.1:50051")
    assert result.returncode == 1
    assert "192.0.2.1:50051" in result.stderr
    assert os.strerror(99) in result.stderr


def test_any_address_is_that_of_ipv4_where_ipv6_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_ipv6_works", lambda: False)
    assert server.usable_address("[::]:0") == "0.0.0.0:0"
    assert server.usable_address("127.0.0.1:0") == "127.0.0.1:0"


def test_unix_socket_serves_and_a_second_daemon_is_refused(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/argusd.sock"
    with Daemon("-address", address) as daemon:
        assert daemon.address == address
        assert daemon.state() == []
        result = run_to_end("-log_dir=", "-address", address)
        assert result.returncode == 1
        assert address in result.stderr
        assert daemon.state() == []


def test_a_file_in_the_place_of_the_socket_is_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("data")
    result = run_to_end("-log_dir=", f"-address=unix:{precious}")
    assert result.returncode == 1
    assert precious.read_text() == "data"


def health(channel: grpc.Channel, service: str = "") -> int:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    status: int = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=WAIT_S).status
    return status


def test_any_address_answers_ipv4() -> None:
    with Daemon("-address=[::]:0") as daemon:
        port = daemon.address.rpartition(":")[2]
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            assert health(channel) == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("service", ["", "argus.Argusd"])
def test_health_is_serving(daemon: Daemon, service: str) -> None:
    assert health(daemon.channel, service) == health_pb2.HealthCheckResponse.SERVING


def test_health_of_an_unknown_service_is_not_found(daemon: Daemon) -> None:
    with pytest.raises(grpc.RpcError) as failure:
        health(daemon.channel, "x")
    assert failure.value.code() == grpc.StatusCode.NOT_FOUND


def services(daemon: Daemon) -> set[str]:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(daemon.channel)
    requests = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    answer = next(iter(stub.ServerReflectionInfo(requests, timeout=WAIT_S)))
    return {service.name for service in answer.list_services_response.service}


def test_reflection_lists_the_services(daemon: Daemon) -> None:
    assert {"argus.Argusd", "grpc.health.v1.Health"} <= services(daemon)


def test_reflection_is_off_unless_asked_for() -> None:
    with Daemon() as daemon, pytest.raises(grpc.RpcError) as failure:
        services(daemon)
    assert failure.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_json_records_have_their_keys_in_order(daemon: Daemon) -> None:
    record = json.loads(daemon.wait_for_text("Server listening on"))
    assert list(record)[:4] == ["timestamp", "level", "logger", "message"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", record["timestamp"])
    assert record["level"] == "INFO"


def test_text_lines_have_the_glog_prefix() -> None:
    with Daemon("-log=text") as daemon:
        assert daemon.state() == []
    assert daemon.lines
    assert all(GLOG_PREFIX.match(line) for line in daemon.lines)


def test_log_file_is_kept_in_text_form(tmp_path: Path) -> None:
    with Daemon("-log=json", f"-log_dir={tmp_path}") as daemon:
        assert daemon.state() == []
    lines = (tmp_path / "argusd.INFO").read_text().splitlines()
    assert len(lines) == len(daemon.lines)
    assert all(GLOG_PREFIX.match(line) for line in lines)


@pytest.mark.parametrize("name", ["missing", "file"])
def test_a_log_folder_that_cannot_be_used_is_one_warning(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with Daemon("-log=text", f"-log_dir={tmp_path / name}") as daemon:
        assert daemon.state() == []
    # Without root the lack of capabilities is another one.
    assert sum(line.startswith("W") and "log file" in line for line in daemon.lines) == 1


def test_a_symlink_in_the_place_of_the_log_file_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("data")
    (tmp_path / "argusd.INFO").symlink_to(target)
    with Daemon("-log=text", f"-log_dir={tmp_path}") as daemon:
        assert daemon.state() == []
    assert target.read_text() == "data"
    assert stat.S_ISLNK((tmp_path / "argusd.INFO").lstat().st_mode)
