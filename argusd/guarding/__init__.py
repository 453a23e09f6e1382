"""The guard engine, native: nothing in here is for Python but through ``argusd._fanotify``."""
