"""What a probe and a controller ask of a daemon under test."""

from __future__ import annotations

import itertools
import os
import select
import threading
from collections.abc import Callable
from typing import Final

import grpc
from grpc_health.v1 import health_pb2

from argusd.proto import argus_pb2, argus_pb2_grpc

START_TIMEOUT_S: Final = 30.0
RPC_TIMEOUT_S: Final = 5.0
SERVING: Final = health_pb2.HealthCheckResponse.SERVING


def health(channel: grpc.Channel) -> int:
    # The type stubs of grpc_health leave the stub's methods out.
    check = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    response: health_pb2.HealthCheckResponse = check(
        health_pb2.HealthCheckRequest(service="argus.Argusd"), timeout=RPC_TIMEOUT_S
    )
    return int(response.status)


def create_watch(channel: grpc.Channel, config: argus_pb2.ArgusdConfig) -> argus_pb2.ArgusdHandle:
    handle: argus_pb2.ArgusdHandle = argus_pb2_grpc.ArgusdStub(channel).CreateWatch(config, timeout=RPC_TIMEOUT_S)
    return handle


def first_message(channel: grpc.Channel, make_event: Callable[[str], object]) -> argus_pb2.ArgusdMetricsHandle:
    """The first RecordMetrics message, while ``make_event`` is called with 0, 1, 2 … until one is counted.

    Nothing tells a client when its stream counts from.
    """
    metrics = argus_pb2_grpc.ArgusdStub(channel).RecordMetrics(argus_pb2.Empty(), timeout=START_TIMEOUT_S)
    stop = os.eventfd(0)

    def make_events() -> None:
        for number in itertools.count():
            make_event(str(number))
            if select.select([stop], [], [], 0.1)[0]:
                return

    maker = threading.Thread(target=make_events, name="make-events", daemon=True)
    maker.start()
    try:
        message: argus_pb2.ArgusdMetricsHandle = next(metrics)
    finally:
        os.eventfd_write(stop, 1)
        maker.join()
        os.close(stop)
        metrics.cancel()
    return message
