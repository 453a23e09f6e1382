"""One line per change with watchfiles: ``watchfiles_lines.py FOLDER``. It merges what comes close together."""

from __future__ import annotations

import sys

from watchfiles import watch

# The first batch is empty: it comes when the watch stands and nothing has happened for a moment.
for changes in watch(sys.argv[1], yield_on_timeout=True, rust_timeout=500):
    if not changes:
        print("ready", flush=True)
    for change, path in changes:
        print(f"{change.raw_str()} {path}")
    sys.stdout.flush()
