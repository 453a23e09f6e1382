"""Every recording of the original janusd, replayed against a running daemon, compared after each single operation."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from google.protobuf import json_format

from argusd.proto import janus_pb2
from tests.conformance.guarding import GuardedContainer, Guarding
from tests.conformance.lines import SENTINEL
from tests.conformance.scenarios import GuardRecording, load_guards
from tests.conformance.watching import RPC_TIMEOUT_S
from tests.containers import RuncContainer, needs_runc
from tests.daemon import Daemon

pytestmark = needs_runc


@pytest.fixture(scope="module")
def guarding() -> Iterator[Guarding]:
    with Daemon("-log=text", "-services=janus") as daemon, RuncContainer() as sentinel:
        yield Guarding(daemon, sentinel)


@pytest.mark.parametrize("recording", load_guards(), ids=lambda recording: recording.name)
def test_recording(guarding: Guarding, recording: GuardRecording) -> None:
    with GuardedContainer() as box:
        for line in recording.setup:
            box.prepare(line)
        request = json_format.ParseDict(
            dict(recording.request, cid=[box.uri_as("cri-o")]), janus_pb2.JanusdConfig()
        )  # fmt: skip
        try:
            handle = guarding.stub.CreateGuard(request, timeout=RPC_TIMEOUT_S)
            assert (handle.nodeName, handle.podName) == (recording.response["nodeName"], recording.response["podName"])
            assert list(handle.pid) == [box.pid]
            # The numbers of the original's descriptors mean nothing; that there is one for each pid may.
            assert len(handle.processEventfd) == len(recording.response["processEventfd"])
            assert guarding.take_lines() == recording.created
            for number, step in enumerate(recording.steps):
                where = f"operation {number} {step.operation}"
                assert box.perform(step.operation) == step.result, where
                assert guarding.take_lines() == step.lines, where
            state = guarding.stub.GetGuardState(janus_pb2.Empty(), timeout=RPC_TIMEOUT_S)
            assert [list(one.pid) for one in state if one.podName != SENTINEL] == [[box.pid]]
        finally:
            pod = janus_pb2.JanusdConfig(nodeName="node1", podName="pod1")
            guarding.stub.DestroyGuard(pod, timeout=RPC_TIMEOUT_S)
        lines = guarding.take_lines()
        assert lines == ("I Stopping `fanotify` guard (pod1:node1)",)
