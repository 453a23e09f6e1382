"""One container is watched and guarded at the same time: nobody waits, nothing is lost."""

from __future__ import annotations

import shutil

import pytest

from tests.containers import needs_runc
from tests.soak.guards import run

pytestmark = [
    needs_runc,
    pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler for the processes in the container"),
]

DURATION_S = 3.0


@pytest.mark.parametrize("services", [["argus,janus"], ["argus", "janus"]], ids=["in-one-process", "in-two"])
def test_all_that_is_done_is_logged_once(services: list[str]) -> None:
    done = run(DURATION_S, services).counts
    assert min(done[kind] for kind in ("MODIFY", "CREATE", "DELETE", "ALLOW", "DENY")) > 100
