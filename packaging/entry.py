"""What the one-file binary runs: ``python -m argusd``, under the name and for as long as its launcher lives.

Facts about the binary. It runs as three processes: staticx's launcher, which the user started and which holds argv[0];
PyInstaller's, which runs from the bundle that the launcher wrote; and this one. Both launchers make their folders in
/tmp (or ``TMPDIR``) with mkdtemp: names that cannot be guessed, mode 0700, so nobody else can put a library there.
SIGTERM and SIGINT pass down and the exit code comes back up. Two things are lost on the way, and are put right here:

- ``STATICX_PROG_PATH`` is /proc/self/exe, so a symlink named janusd would be called argusd.
- The first launcher passes on no other signal: SIGHUP or SIGKILL end it and would leave the daemon behind.

What SIGKILL leaves of the folders is removed by the next start, see argusd/unpacked.py. When /tmp is read-only, too
small or mounted noexec, the launchers end before anything here runs, with messages of their own; README.md lists those.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import threading
from pathlib import Path

from argusd import descriptors, unpacked
from argusd.__main__ import main


def find_launcher(bundle: Path) -> tuple[int, str]:
    """Return the process id and argv[0] of the process that wrote the bundle: the first ancestor not run from it."""
    pid = os.getppid()
    while True:
        process = Path("/proc") / str(pid)
        name = os.fsdecode((process / "cmdline").read_bytes().split(b"\0", 1)[0])
        if Path(name).parent != bundle:
            return pid, name
        # The fields after the command, which may itself hold blanks and brackets: state, parent.
        pid = int((process / "stat").read_text().rpartition(")")[2].split()[1])


def end_with(launcher: int) -> None:
    """Wait for the end of the launcher, then stop the daemon as SIGTERM does."""
    # Signals are the business of the main thread.
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    select.select([launcher], [], [])
    os.kill(os.getpid(), signal.SIGTERM)


def run() -> int:
    """Run the daemon and return its exit code."""
    descriptors.open_standard()
    folder = os.environ.get("STATICX_BUNDLE_DIR")
    if folder is None:  # made by PyInstaller alone
        return main() or 0
    bundle = Path(folder)
    unpacked.keep(path for path in {bundle, Path(sys._MEIPASS)} if path.parent == bundle.parent)  # type: ignore[attr-defined] # noqa: SLF001 (PyInstaller's)
    unpacked.remove_left(bundle.parent)
    pid, name = find_launcher(bundle)
    sys.argv[0] = os.environ["STATICX_PROG_PATH"] = name
    launcher = os.pidfd_open(pid)
    threading.Thread(target=end_with, args=(launcher,), name="launcher", daemon=True).start()
    try:
        return main() or 0
    finally:
        if select.select([launcher], [], [], 0)[0]:  # it is gone and cannot tidy up
            shutil.rmtree(bundle, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(run())
