"""A hostile container, a daemon that watches it, and a hunt for escapes while it attacks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pytest

from demo.container import missing_for_runc
from tests.daemon import Daemon
from tests.e2e.hostile.hunt import Canaries, HostileContainer, Hunt, inodes_below, watched
from tests.waiting import until

WAYS: Final = ("openat2", "setns")
"""The ways into a container: all tests of this folder go all ways."""


@pytest.fixture(scope="module")
def canaries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Canaries]:
    canaries = Canaries(tmp_path_factory.mktemp("host"))
    yield canaries
    canaries.close()


@pytest.fixture(scope="module", params=WAYS)
def daemon(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    with Daemon("-log=json", f"-enter={request.param}") as daemon:
        yield daemon


@pytest.fixture
def box() -> Iterator[HostileContainer]:
    if reason := missing_for_runc():
        pytest.skip(reason)
    with HostileContainer() as box:
        yield box


@pytest.fixture
def pod(box: HostileContainer) -> str:
    """A name for the box that no other test has in the daemon's log."""
    return f"pod-{box.id[:12]}"


@pytest.fixture
def hunt(daemon: Daemon, canaries: Canaries, box: HostileContainer) -> Iterator[Hunt]:
    until(lambda: not watched(daemon.pid), "no watches of the test before")
    with Hunt(daemon, canaries, [box.rootfs.parent]) as hunt:
        yield hunt
        # At rest there is nothing but what is in the container, where its init may have left for another root.
        inside = inodes_below(box.root) | inodes_below(box.rootfs)
        until(lambda: watched(daemon.pid) <= inside, "all watches are in the container")
