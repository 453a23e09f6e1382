"""The length of the kernel's queue: longer for our instance, and for nobody else's."""

from __future__ import annotations

import errno
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from argusd import event_queue
from argusd._inotify import Engine
from argusd._output import TEXT, Output
from tests.daemon import COMMAND, Daemon
from tests.kernel.test_lifetimes import subscribe
from tests.kernel.watching import Watching

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to change a sysctl"),
    pytest.mark.changes_sysctls,
]

SYSCTL = Path("/proc/sys/fs/inotify/max_queued_events")
MORE = 2 * int(SYSCTL.read_text())


def longer(tmp_path: Path, wanted: int) -> Watching:
    """An engine that has not begun to read, with a queue of its own length."""
    watching = Watching.__new__(Watching)
    watching.log = tmp_path / "log"
    watching.output = Output()
    watching.output.add_file(str(watching.log), 1 << 30, TEXT)
    with event_queue.opened(wanted) as sysctl:
        assert sysctl.errno == 0
        watching.engine = Engine(watching.output, "auto", sysctl.descriptor, wanted)
    watching.counter = watching.engine.new_counter()
    return watching


def test_a_longer_queue_keeps_what_the_nodes_setting_would_drop(tmp_path: Path, folder: Path) -> None:
    before = int(SYSCTL.read_text())
    watching = longer(tmp_path, MORE)
    assert int(SYSCTL.read_text()) == before
    assert watching.engine.queue == (MORE, 0)
    pidfd = os.pidfd_open(os.getpid())
    try:
        number = subscribe(watching, os.getpid(), pidfd, folder)
    finally:
        os.close(pidfd)
    assert watching.engine.arm(number).errors == (0,)
    watching.engine.switch([number], [])
    for name in range(before + 1000):
        os.mknod(folder / str(name))
    watching.engine.start()
    watching.expect(before + 1000)
    assert watching.engine.statistics()["overflows"] == 0
    watching.close()


def test_many_at_once_leave_the_setting_as_it_was() -> None:
    before = SYSCTL.read_text()

    def make(number: int) -> int:
        output = Output()
        with event_queue.opened(MORE + number) as sysctl:
            engine = Engine(output, "auto", sysctl.descriptor, MORE + number)
        length: int = engine.queue[0]
        engine.close()
        output.close()
        return length - number

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(make, range(64))) == {MORE}
    assert SYSCTL.read_text() == before


def test_a_setting_that_cannot_be_written_keeps_the_nodes_length() -> None:
    output = Output()
    descriptor = os.open(SYSCTL, os.O_RDONLY)
    try:
        engine = Engine(output, "auto", descriptor, MORE)
    finally:
        os.close(descriptor)
    assert engine.queue == (int(SYSCTL.read_text()), errno.EBADF)
    engine.close()
    output.close()


def test_the_daemon_says_at_its_start_what_it_got() -> None:
    before = SYSCTL.read_text()
    with Daemon(f"-max_queued_events={MORE}") as daemon:
        daemon.wait_for(lambda line: f"event queue holds {MORE} events" in line)
    assert SYSCTL.read_text() == before


def test_the_daemon_warns_where_the_setting_is_read_only() -> None:
    """As in a container: /proc/sys is read-only, and process 1 is not the node's."""
    script = 'mount -t proc proc /proc && mount -o bind,ro /proc/sys /proc/sys && exec "$@"'
    command = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script, "sh")
    if subprocess.run([*command, "true"], check=False).returncode:
        pytest.skip("no mount namespaces")
    with Daemon(f"-max_queued_events={MORE}", command=(*command, *COMMAND)) as daemon:
        line = daemon.wait_for(lambda line: "event queue holds" in line)
        assert "Read-only file system" in line
        daemon.kill()
