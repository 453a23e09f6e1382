"""The entry of both daemons: which one am I, flags, run, exit code."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from argusd import descriptors, flags

__all__ = ["main"]

# Their default is to end the process, which would open what it guards. The daemon says what it does with each.
_NOT_THE_END = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM)


def program_name() -> str:
    """The name under which this was called; the one-file binary unpacks itself and keeps it in the environment."""
    name = os.environ.get("STATICX_PROG_PATH") or sys.argv[0]
    return "argusd" if Path(name).name == "__main__.py" else name  # python -m argusd


def main() -> int:
    """Run the daemon that the command line asks for; returns the exit code."""
    descriptors.open_standard()
    program = program_name()
    try:
        settings = flags.parse(sys.argv[1:], program)
    except flags.FlagError as error:
        sys.stderr.write(f"{error}\n{flags.hint(sys.argv[1:])}\n")
        return 1
    match settings.action:
        case "help":
            sys.stdout.write(flags.help_text(program))
            return 0
        case "version":
            sys.stdout.write(flags.version_text(program))
            return 0
    for number in _NOT_THE_END:
        signal.signal(number, signal.SIG_IGN)
    if problem := descriptors.too_few(descriptors.raise_limit()):
        sys.stderr.write(f"ERROR: {problem}\n")
        return 1
    # grpc writes lines of its own, not ours, to stderr. What matters reaches our log as errors.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # Not before: what it imports opens descriptors, and aborts where there are none left.
    from argusd import daemon, logs  # noqa: PLC0415

    try:
        return daemon.run(settings)
    except daemon.StartError as error:
        logs.write_start_error(settings.log, str(error))
        return 1


if __name__ == "__main__":
    sys.exit(main())
