"""Every recording of the original, replayed against a running daemon, compared after each single operation."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf import json_format

from argusd.proto import argus_pb2
from tests.conformance.lines import SENTINEL
from tests.conformance.operations import perform
from tests.conformance.scenarios import Recording, Step, load_all, matches, merged
from tests.conformance.watching import RPC_TIMEOUT_S, Metric, Watching
from tests.containers import RuncContainer, needs_runc
from tests.daemon import Daemon

pytestmark = needs_runc
FIRST_RECORDED_PID = 900001


@pytest.fixture(scope="module")
def watching() -> Iterator[Watching]:
    with (
        Daemon("-log=text") as daemon,
        RuncContainer() as sentinel,
        contextlib.closing(Watching(daemon, sentinel)) as watching,
    ):
        yield watching


@pytest.mark.parametrize("recording", load_all(), ids=lambda recording: recording.name)
def test_recording(watching: Watching, recording: Recording) -> None:
    with contextlib.ExitStack() as stack:
        replay = Replay(watching, [stack.enter_context(RuncContainer()) for _ in recording.request["cid"]])
        stack.callback(replay.end)
        for box in replay.containers:
            for operation in recording.setup:
                perform(box.rootfs, operation)
        replay.start(recording)
        for number, step in enumerate(recording.steps):
            replay.check(f"operation {number} {step.operation}", step, recording)
        assert watching.take_lines() == ()


class Replay:
    """One recording's way through the daemon."""

    def __init__(self, watching: Watching, containers: list[RuncContainer]) -> None:
        self._watching = watching
        self.containers = containers

    def start(self, recording: Recording) -> None:
        """Send the first CreateWatch and compare its answer and its lines."""
        request = self._request(recording)
        if recording.status:
            request.cid[:] = ["cri-o://" + "0" * 64]
            with pytest.raises(grpc.RpcError) as failure:
                self._watching.stub.CreateWatch(request, timeout=RPC_TIMEOUT_S)
            assert failure.value.code().name == recording.status
            assert request.cid[0] in str(failure.value.details())
            assert not any("Starting" in line for line in self._watching.take_lines())
            return
        assert self._answer(self._create(request)) == self._with_real_pids(recording.response)
        lines = self._watching.take_lines()
        assert len(lines) == len(recording.created), lines
        # The order among lines about the creation itself is not promised.
        for expected in recording.created:
            assert any(matches(expected, line) for line in lines), f"{expected!r} is not among {lines}"

    def check(self, where: str, step: Step, recording: Recording) -> None:
        """Perform one operation and compare what followed from it."""
        result = self._perform(step.operation, recording)
        lines = self._watching.take_lines(len(merged(step.lines)))
        assert merged(lines) == merged(step.lines), where
        metrics = counts_of(lines, step)
        assert self._watching.take_metrics(metrics) == metrics, where
        if step.result is not None:
            assert result == self._with_real_pids(step.result), where

    def end(self) -> None:
        """Leave the daemon as it was found, whatever the recording did."""
        stub = self._watching.stub
        stub.DestroyWatch(argus_pb2.ArgusdConfig(nodeName="node1", podName="pod1"), timeout=RPC_TIMEOUT_S)
        self._watching.take_lines()
        self._watching.take_metrics(Counter())

    def _perform(self, operation: tuple[Any, ...], recording: Recording) -> Any:
        match operation:
            case ("state",):
                return self._state()
            case ("create", subjects):
                return self._answer(self._create(self._request(recording, subjects)))
            case ("destroy", target):
                request = argus_pb2.ArgusdConfig(nodeName=target["node"], podName=target["pod"], pid=target["pids"])
                return json_format.MessageToDict(self._watching.stub.DestroyWatch(request, timeout=RPC_TIMEOUT_S))
            case ("@", index, *rest):
                return perform(self.containers[index].rootfs, rest)
            case _:
                return perform(self.containers[0].rootfs, operation)

    def _create(self, request: argus_pb2.ArgusdConfig) -> argus_pb2.ArgusdHandle:
        handle: argus_pb2.ArgusdHandle = self._watching.stub.CreateWatch(request, timeout=RPC_TIMEOUT_S)
        return handle

    def _request(self, recording: Recording, subjects: list[dict[str, Any]] | None = None) -> argus_pb2.ArgusdConfig:
        fields = dict(recording.request, cid=[box.uri_as("cri-o") for box in self.containers])
        if subjects is not None:
            fields["subject"] = subjects
        return json_format.ParseDict(fields, argus_pb2.ArgusdConfig())

    def _state(self) -> list[dict[str, Any]]:
        handles = self._watching.stub.GetWatchState(argus_pb2.Empty(), timeout=RPC_TIMEOUT_S)
        return [self._answer(handle) for handle in handles if handle.podName != SENTINEL]

    def _answer(self, handle: argus_pb2.ArgusdHandle) -> dict[str, Any]:
        return {"nodeName": handle.nodeName, "podName": handle.podName, "pid": list(handle.pid)}

    def _with_real_pids(self, recorded: Any) -> Any:
        if isinstance(recorded, list):
            return [self._with_real_pids(one) for one in recorded]
        if "pid" not in recorded:
            return recorded
        return dict(recorded, pid=[self.containers[pid - FIRST_RECORDED_PID].pid for pid in recorded["pid"]])


def counts_of(lines: tuple[str, ...], step: Step) -> Counter[Metric]:
    """The counts that belong to ``lines``, which differ from the step's only in ACCESS lines that the kernel merged."""
    counts = step.metrics.copy()
    for key in counts:
        if key[1] == "access":
            counts[key] += len(lines) - len(step.lines)
    return counts
