"""The soak for a short while: four processes at once; ``make soak DURATION_S=600`` runs it for longer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak.soak import run

DURATION_S = 20.0


@pytest.mark.slow
@pytest.mark.timeout(400)  # a violation is shrunk
def test_four_writers_find_no_violation(tmp_path: Path) -> None:
    total = run(DURATION_S, writers=4, seed="test", place=tmp_path)
    assert not total.violations
    assert total.operations > 1000
    assert total.reports > 1000
