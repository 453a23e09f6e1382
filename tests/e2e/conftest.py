from __future__ import annotations

from collections.abc import Iterator

import pytest

from demo.container import missing_for_runc
from tests.e2e.place import Place
from tests.e2e.runtimes import RUNTIMES, Runtime


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    if reason := missing_for_runc():
        pytest.skip(reason)
    with Place(tmp_path_factory.mktemp("runtimes")) as place:
        yield place


@pytest.fixture(scope="session", params=list(RUNTIMES))
def runtime(request: pytest.FixtureRequest, place: Place) -> Iterator[Runtime]:
    kind = RUNTIMES[request.param]
    if reason := kind.missing():
        pytest.skip(reason)
    with kind(place) as runtime:
        yield runtime
