"""One line per event with watchdog: ``watchdog_lines.py FOLDER``. Its handlers get events one by one."""

from __future__ import annotations

import os
import sys

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer


class Lines(FileSystemEventHandler):
    """Writes what comes."""

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Write a line."""
        print(f"{event.event_type} {os.fsdecode(event.src_path)}", flush=True)


observer = Observer()
observer.schedule(Lines(), sys.argv[1], recursive=True)
observer.start()
print("ready", flush=True)
observer.join()
