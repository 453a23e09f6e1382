"""Requests of all rpcs: valid ones, valid ones with bytes changed, and bytes of any kind."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from argusd.proto import argus_pb2, janus_pb2

ABSENT_PID: Final = 2**31 - 1
# Paths of a pod first, see tests/fuzz/rpcs.py; then what is missing, endless, too long, or looks like something else.
PATHS: Final = (
    "/data", "/data/a", "/data/file", "/data/link", "/data/fifo", "/data/a/b/..", "/", "/data/loop/x", "//data///a/./",
    "/missing/x", "data", "", "/x" * 1000,
    "/" + "y" * 255, "/" + "y" * 256, "/a\0b", "/\u2028\u202e", "/\x1b[31m/d", "/data/%s{}",
)  # fmt: skip
EVENTS: Final = ("create", "modify", "all", "open", "access", "close", "MODIFY", "move", "deleteself", "", "x", "\n")
FORMATS: Final = (
    "", "{event}", "{", "}", "{{}}", "{0}{1}", "{event:>1024}", "{event:>1025}", "{path!r}", "{tags:é^9.3s}", "{}" * 64,
    "{}" * 65, "{event.__class__}", "{pod:{node}}",
    "a\n{file}\x1b]0;x\x07", "{response} {path}", "{99}", "{-1}", "{event:.0}",
)  # fmt: skip
NAMES: Final = ("n1", "n1", "n2", "n3", "", "pod\nx", "\x1b[2J", "é", "\u2028", "x" * 1024, "x" * 1025, 'a"b\\c')
IDS: Final = (
    "",
    "x",
    "docker://",
    "docker://" + "g" * 64,
    "../../etc",
    "0" * 64,
    "containerd://" + "a" * 64,
    "\n",
    "ab" * 6,
)
DEPTHS: Final = (0, 0, 1, 2, 3, -1, 2**31 - 1, -(2**31))
INSERTED: Final = (
    b"\xff" * 10,
    b"\x0a\xff\xff\xff\xff\x0f",
    b"\x80" * 11 + b"\x01",
    b"\x0b" * 200,
    b"\xf8\xff\xff\xff\x0f",
)

TYPES: Final[dict[str, Any]] = {
    "/argus.Argusd/CreateWatch": argus_pb2.ArgusdConfig,
    "/argus.Argusd/DestroyWatch": argus_pb2.ArgusdConfig,
    "/argus.Argusd/GetWatchState": argus_pb2.Empty,
    "/argus.Argusd/RecordMetrics": argus_pb2.Empty,
    "/janus.Janusd/CreateGuard": janus_pb2.JanusdConfig,
    "/janus.Janusd/DestroyGuard": janus_pb2.JanusdConfig,
    "/janus.Janusd/GetGuardState": janus_pb2.Empty,
    "/grpc.health.v1.Health/Check": health_pb2.HealthCheckRequest,
    "/grpc.health.v1.Health/Watch": health_pb2.HealthCheckRequest,
}
METHODS: Final[dict[str, int]] = {
    "/argus.Argusd/CreateWatch": 40,
    "/argus.Argusd/DestroyWatch": 15,
    "/argus.Argusd/GetWatchState": 3,
    "/argus.Argusd/RecordMetrics": 1,
    "/janus.Janusd/CreateGuard": 20,
    "/janus.Janusd/DestroyGuard": 12,
    "/janus.Janusd/GetGuardState": 2,
    "/grpc.health.v1.Health/Check": 3,
    "/grpc.health.v1.Health/Watch": 1,
    "/argus.Argusd/Missing": 1,
    "/no.Service/At/All": 1,
}
"""Each with its weight."""
STREAMS: Final = frozenset(
    {
        "/argus.Argusd/GetWatchState",
        "/argus.Argusd/RecordMetrics",
        "/janus.Janusd/GetGuardState",
        "/grpc.health.v1.Health/Watch",
    }
)


class Call(NamedTuple):
    """An rpc and what is sent."""

    method: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Requests:
    """Makes requests about some pods, and about none."""

    chance: random.Random
    pods: Sequence[int]

    def next(self) -> Call:
        """Any request but those that name a process which is none of the pods: that could be one of the node's own."""
        (method,) = self.chance.choices(list(METHODS), list(METHODS.values()))
        while not self._is_harmless(method, payload := self._payload(method)):
            pass
        return Call(method, payload)

    def _is_harmless(self, method: str, payload: bytes) -> bool:
        try:
            message = TYPES.get(method, argus_pb2.Empty).FromString(payload)
        except DecodeError:
            return True
        return all(pid <= 0 or pid == ABSENT_PID or pid in self.pods for pid in getattr(message, "pid", ()))

    def _payload(self, method: str) -> bytes:
        kind = self.chance.random()
        if kind >= 0.9:
            return self.chance.randbytes(self.chance.choice([0, 1, 5, 50, 500]))
        message = self._message(TYPES.get(method, argus_pb2.ArgusdConfig))
        valid: bytes = message.SerializeToString()
        return valid if kind < 0.45 else self._mutated(valid)

    def _message(self, kind: Any) -> Any:
        message = kind()
        if kind is health_pb2.HealthCheckRequest:
            message.service = self.chance.choice(["", "argus.Argusd", "janus.Janusd", "x", "\u2028"])
        elif kind in {argus_pb2.ArgusdConfig, janus_pb2.JanusdConfig}:
            message.name, message.nodeName, message.podName = (self.chance.choice(NAMES) for _ in range(3))
            message.logFormat = self.chance.choice(FORMATS)
            self._address(message)
            fill = self._watch if kind is argus_pb2.ArgusdConfig else self._guard
            for _ in range(self.chance.choice([0, 1, 1, 1, 2, 5])):
                fill(message.subject.add())
        return message

    def _address(self, message: Any) -> None:
        if self.chance.random() < 0.02:
            message.cid.extend(self._some(IDS, 1, 1, 2))
        if self.chance.random() < 0.9:
            message.pid.extend(self._some([*(*self.pods,) * 20, 0, -1, ABSENT_PID], 1, 1, 2))

    def _watch(self, subject: Any) -> None:
        subject.path.extend(self._some(PATHS, 0, 1, 1, 2, 6))
        subject.event.extend(self._some(EVENTS, 0, 1, 2, 8))
        subject.ignore.extend(self._some(["a", "b", "", "..", "/", "x" * 300, "\n"], 0, 0, 1, 3))
        subject.recursive, subject.onlyDir, subject.followMove = (self.chance.random() < 0.4 for _ in range(3))
        subject.maxDepth = self.chance.choice(DEPTHS)
        self._tag(subject)

    def _guard(self, subject: Any) -> None:
        subject.deny.extend(self._some(PATHS, 0, 1, 2))
        subject.allow.extend(self._some(PATHS, 0, 1, 2))
        subject.event.extend(self._some(["open", "open", "access", "all", "modify", ""], 0, 1, 1, 2))
        subject.onlyDir, subject.autoAllowOwner, subject.audit = (self.chance.random() < 0.3 for _ in range(3))
        self._tag(subject)

    def _tag(self, subject: Any) -> None:
        for key in self._some(NAMES, 0, 0, 1, 3):
            subject.tags[key] = self.chance.choice(NAMES)

    def _some(self, values: Sequence[Any], *counts: int) -> list[Any]:
        return [self.chance.choice(values) for _ in range(self.chance.choice(counts))]

    def _mutated(self, valid: bytes) -> bytes:
        text = bytearray(valid)
        for _ in range(self.chance.choice([1, 1, 2, 4, 16])):
            self.chance.choice(MUTATIONS)(self.chance, text)
        return bytes(text)


def _change(chance: random.Random, text: bytearray) -> None:
    if text:
        text[chance.randrange(len(text))] = chance.randrange(256)


def _insert(chance: random.Random, text: bytearray) -> None:
    at = chance.randrange(len(text) + 1)
    text[at:at] = chance.choice([*INSERTED, chance.randbytes(chance.choice([1, 2, 9]))])


def _delete(chance: random.Random, text: bytearray) -> None:
    at = chance.randrange(len(text) + 1)
    del text[at : at + chance.choice([1, 3, 20])]


def _repeat(chance: random.Random, text: bytearray) -> None:
    begin, at = (chance.randrange(len(text) + 1) for _ in range(2))
    text[at:at] = text[begin : begin + chance.choice([5, 50])]


MUTATIONS: Final[tuple[Callable[[random.Random, bytearray], None], ...]] = (_change, _insert, _delete, _repeat)
