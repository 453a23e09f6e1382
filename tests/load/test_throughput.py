"""One producer at full speed: every event is logged, with the kernel's default queue."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

import pytest

from tests.load.watched import Growing, LoadedDaemon, build_producer, make_files, run_producer, until

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, as the daemon does"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler for the producer"),
]

FILES = 1000
ROUNDS = 150
EVENTS = 2 * FILES * ROUNDS
MODIFY, CLOSE_WRITE = b'"event":"MODIFY"', b'"event":"CLOSE_WRITE"'


@pytest.mark.parametrize("through_pipe", [False, True], ids=["file", "pipe"])
def test_as_many_lines_are_logged_as_events_were_made(tmp_path: Path, *, through_pipe: bool) -> None:
    producer, folder = build_producer(tmp_path), tmp_path / "watched"
    make_files(folder, FILES)
    with LoadedDaemon(tmp_path / "log", through_pipe=through_pipe) as daemon:
        daemon.watch(folder, ["modify", "closewrite"])
        run_producer(producer, folder, FILES, ROUNDS)
        with contextlib.closing(Growing(daemon.log, [MODIFY, CLOSE_WRITE])) as log:
            until(lambda: log.read() >= EVENTS or b"dropped" in b"".join(log.others), f"{EVENTS} lines")
            daemon.process.terminate()
            assert daemon.process.wait(20) == 0
            log.read()
            assert log.counts == {MODIFY: EVENTS // 2, CLOSE_WRITE: EVENTS // 2}
            assert [line for line in log.others if b"overflow" in line or b"dropped" in line] == []
