"""`make demo` and `make demo-janus`: run from anywhere, as root, with the project's Python."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

# As a script this file's own folder is what Python searches; the packages are one level up.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

if __name__ == "__main__":
    STORY = "demo.guard_story" if sys.argv[1:] == ["janus"] else "demo.watch_story"
    sys.exit(importlib.import_module(STORY).main())
