"""Deployments through their lives, under a controller that knows them and the daemon from the API server alone."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Final

import pytest

from argusd.proto import argus_pb2, janus_pb2
from tests.e2e.controller import GUARDS, WATCHES, Controller, Resource, Service, Subject
from tests.e2e.kubernetes import objects
from tests.e2e.kubernetes.api import Object
from tests.e2e.kubernetes.cluster import Cluster
from tests.e2e.kubernetes.deployed import NAMESPACE, Deployed, ids_of, is_ready, until
from tests.e2e.kubernetes.informer import Informer

NUMBERS: Final = itertools.count()


class Play(ABC):
    """A deployment, its daemon and their controller."""

    service: ClassVar[Service]

    def __init__(self, daemon: Deployed, name: str) -> None:
        self.daemon = daemon
        self.cluster: Cluster = daemon.cluster
        self.name = name
        self.controller: Controller

    @property
    def pods(self) -> list[Object]:
        """The deployment's pods that shall stay."""
        pods = self.cluster.api.list("pods", NAMESPACE)
        mine = [pod for pod in pods if pod["metadata"]["labels"].get("app") == self.name]
        return [pod for pod in mine if "deletionTimestamp" not in pod["metadata"]]

    def settle(self, count: int) -> None:
        """Wait until that many pods are Ready, no other is there, and each was created with all its containers."""
        until(
            lambda: self._is_settled(count),
            f"{count} pods of {self.name}; tries failed: {self.controller.failures[-5:]}",
        )

    def _is_settled(self, count: int) -> bool:
        pods = self.pods
        created = [
            len(self.controller.created.get((pod["metadata"]["uid"], self.name), ())) == len(pod["spec"]["containers"])
            for pod in pods
        ]
        return len(pods) == count and all(map(is_ready, pods)) and all(created)

    def probe(self) -> None:
        """Use one file in every container: each is reported once."""
        number = next(NUMBERS)
        expected = set()
        for pod in self.pods:
            for name, container in ids_of(pod).items():
                file = f"probe-{number}-{name}"
                self.use(self.cluster.root_of(container) / "data" / file)
                expected.add((pod["metadata"]["name"], container.partition("//")[2], file))
        until(lambda: self.reported(number) >= expected, f"reports of {expected}")
        assert self.reported(number) == expected

    def reported(self, number: int) -> set[tuple[str, str, str]]:
        """Who reported one round's files."""
        events = [(event, self.file(event)) for event in self.daemon.events]
        return {
            (event["pod"], event["container"], file) for event, file in events if file.startswith(f"probe-{number}-")
        }

    @staticmethod
    @abstractmethod
    def subject() -> Subject:
        """What to do with the folder /data."""

    @staticmethod
    @abstractmethod
    def use(file: Path) -> None:
        """Make an event of it."""

    @staticmethod
    @abstractmethod
    def file(event: dict[str, str]) -> str:
        """The name that a line is about."""


class WatchPlay(Play):
    """Files that are made are reported."""

    service = WATCHES

    @staticmethod
    def subject() -> Subject:
        return argus_pb2.ArgusWatcherSubject(path=["/data"], event=["create"], recursive=True)

    @staticmethod
    def use(file: Path) -> None:
        file.touch()

    @staticmethod
    def file(event: dict[str, str]) -> str:
        return event["file"]


class GuardPlay(Play):
    """Files cannot be opened."""

    service = GUARDS

    @staticmethod
    def subject() -> Subject:
        return janus_pb2.JanusGuardSubject(deny=["/data"], event=["open"])

    @staticmethod
    def use(file: Path) -> None:
        with pytest.raises(PermissionError):
            file.touch()

    @staticmethod
    def file(event: dict[str, str]) -> str:
        return Path(event["path"]).name


@pytest.fixture(params=["argusd", "janusd"])
def play(request: pytest.FixtureRequest) -> Iterator[Play]:
    daemon: Deployed = request.getfixturevalue(request.param)
    play = {"argusd": WatchPlay, "janusd": GuardPlay}[request.param](daemon, f"lives-{request.param}")
    resource = Resource(play.name, play.name, (play.subject(),))
    with Informer(daemon, play.service, resource) as play.controller:
        play.cluster.api.create(
            "deployments",
            NAMESPACE,
            objects.deployment(play.name, 2, objects.container("one"), objects.container("two")),
        )
        yield play
        play.cluster.api.delete("deployments", NAMESPACE, play.name)
        until(lambda: not play.pods, "the deployment's pods go")


def test_a_deployment_scales_crashes_and_rolls_out(play: Play) -> None:
    play.settle(2)
    play.probe()
    scale(play, 5)
    play.probe()
    crash(play)
    play.probe()
    roll_out(play)
    play.probe()
    scale(play, 1)
    play.probe()
    gone = {handle[1] for handle in state(play)} - {pod["metadata"]["name"] for pod in play.pods}
    until(lambda: not gone_pods(play), f"the state forgets {gone}")


def state(play: Play) -> tuple[tuple[str, str, frozenset[int]], ...]:
    connection = play.controller.connection
    assert connection
    return connection.poll().handles


def gone_pods(play: Play) -> set[str]:
    """What the daemon still names of the deployment though it is gone."""
    named = {handle[1] for handle in state(play) if handle[1].startswith(play.name)}
    return named - {pod["metadata"]["name"] for pod in play.pods}


def scale(play: Play, count: int) -> None:
    play.cluster.api.patch("deployments", NAMESPACE, play.name, {"spec": {"replicas": count}})
    play.settle(count)


def crash(play: Play) -> None:
    """Every container of one pod ends at once: the kubelet starts them again, and the controller calls anew."""
    pod = play.pods[0]
    old = ids_of(pod)
    for container in old.values():
        play.cluster.ctr("tasks", "kill", "--signal=KILL", container.partition("//")[2])

    def restarted() -> bool:
        now = ids_of(play.cluster.api.get("pods", NAMESPACE, pod["metadata"]["name"]))
        return now.keys() == old.keys() and not set(now.values()) & set(old.values())

    until(restarted, "all its containers are new ones")
    until(lambda: created_for(play, pod["metadata"]["uid"]), "a call with the new ones")


def created_for(play: Play, uid: str) -> bool:
    """Whether the last call for a pod was answered with the containers that it has now."""
    pod = next(pod for pod in play.pods if pod["metadata"]["uid"] == uid)
    pids = {play.cluster.pid(container) for container in ids_of(pod).values()}
    return set(play.controller.created.get((uid, play.name), ())) == pids


def roll_out(play: Play) -> None:
    old = {pod["metadata"]["uid"] for pod in play.pods}
    change = {"spec": {"template": {"metadata": {"annotations": {"revision": "2"}}}}}
    play.cluster.api.patch("deployments", NAMESPACE, play.name, change)
    until(lambda: not old & {pod["metadata"]["uid"] for pod in play.pods}, "all pods are new ones")
    play.settle(len(old))
