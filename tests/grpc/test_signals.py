"""What signals do to the daemon."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.daemon import Daemon


@pytest.fixture(scope="module")
def served() -> Iterator[Daemon]:
    with Daemon("-log=text") as daemon:
        yield daemon
    assert daemon.process.returncode == 0


@pytest.mark.parametrize(
    "number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF, signal.SIGIO]
)
def test_a_signal_that_means_nothing_is_one_line(served: Daemon, number: signal.Signals) -> None:
    served.process.send_signal(number)
    served.wait_for_text(f"{number.name} is ignored")
    assert served.state() == []


def test_a_broken_pipe_is_no_end(served: Daemon) -> None:
    served.process.send_signal(signal.SIGPIPE)
    assert served.state() == []


def test_a_hangup_is_no_end(served: Daemon) -> None:
    served.process.send_signal(signal.SIGHUP)
    served.wait_for_text("SIGHUP")
    assert served.state() == []
