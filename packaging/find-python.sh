#!/bin/sh
# find-python.sh: prints a Python 3.11 that can build here: with headers, venv and the shared library that
# PyInstaller puts into the binary. The system's own is preferred to one that happens to be first on PATH.
set -eu
check='import ensurepip, os, sys, sysconfig
include, lib, so = map(sysconfig.get_config_var, ("INCLUDEPY", "LIBDIR", "INSTSONAME"))
static = so.endswith(".a")
sys.exit(not (sys.version_info[:2] == (3, 11) and os.path.exists(os.path.join(include, "Python.h")) and not static))'
for python in ${PYTHON:-} /usr/bin/python3.11 python3.11; do
    if path=$(command -v "$python") && "$path" -c "$check" 2>/dev/null; then
        echo "$path"
        exit 0
    fi
done
echo "No Python 3.11 with its headers, venv and shared library: install python3.11-venv and python3.11-dev, or set PYTHON" >&2
exit 1
