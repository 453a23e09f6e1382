"""Random operations of several processes at once, for a while. ``make soak`` does the same for longer."""

from __future__ import annotations

import subprocess
import sys

import pytest

DURATION_S = 60
OPERATIONS = 80_000
LIMITS = ["--duration-s", str(DURATION_S), "--operations", str(OPERATIONS)]


@pytest.mark.slow
@pytest.mark.changes_sysctls
@pytest.mark.timeout(300)  # a failure is shrunk
def test_every_operation_of_four_processes_is_told_and_nothing_else() -> None:
    soak = subprocess.run(
        [sys.executable, "-m", "tests.soak.soak", "--writers", "4", *LIMITS],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert soak.returncode == 0, soak.stdout + soak.stderr
    assert " 0 violations" in soak.stdout.splitlines()[-1]
