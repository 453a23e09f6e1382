"""One line per event with inotify_simple: ``inotify_simple_lines.py FOLDER``."""

from __future__ import annotations

import sys

from inotify_simple import INotify, flags

inotify = INotify()
folder = sys.argv[1]
inotify.add_watch(folder, flags.OPEN | flags.MODIFY | flags.CLOSE_WRITE | flags.CREATE | flags.DELETE)
print("ready", flush=True)
while True:
    for event in inotify.read():
        names = ",".join(str(flag.name) for flag in flags.from_mask(event.mask))
        print(f"{names} {folder}/{event.name}")
    sys.stdout.flush()
