"""The entry of both daemons: which one am I, flags, run, exit code."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Before grpc is imported: it would write lines of its own, not ours, to stderr. What matters reaches our log as errors.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from argusd import flags
from argusd.daemon import StartError, run

__all__ = ["main"]


def program_name() -> str:
    """The name under which this was called; the one-file binary unpacks itself and keeps it in the environment."""
    name = os.environ.get("STATICX_PROG_PATH") or sys.argv[0]
    return "argusd" if Path(name).name == "__main__.py" else name  # python -m argusd


def main() -> int:
    """Run the daemon that the command line asks for; returns the exit code."""
    program = program_name()
    try:
        settings = flags.parse(sys.argv[1:], program)
        match settings.action:
            case "help":
                sys.stdout.write(flags.help_text(program))
                return 0
            case "version":
                sys.stdout.write(flags.version_text(program))
                return 0
        return run(settings)
    except flags.FlagError as error:
        sys.stderr.write(f"{error}\n")
    except StartError as error:
        sys.stderr.write(f"ERROR: {error}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
