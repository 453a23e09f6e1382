"""Real containers for tests: runc without a daemon, every container with a root of its own."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from demo import container
from demo.container import ContainerError, missing_for_runc
from demo.rootfs import make_rootfs

__all__ = ["ContainerError", "RuncContainer", "needs_runc", "rootfs_template"]

needs_runc = pytest.mark.skipif(bool(missing_for_runc()), reason=missing_for_runc() or "runc can run here")


@functools.cache
def rootfs_template() -> Path:
    """The root that every container starts as a copy of, made once per test process and removed at its end."""
    folder = Path(tempfile.mkdtemp(prefix="argusd-rootfs-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    make_rootfs(folder / "rootfs")
    return folder / "rootfs"


class RuncContainer(container.RuncContainer):
    """A runc container on the shared template. ``with RuncContainer() as box: box.exec(["touch", "/data/x"])``."""

    def __init__(self, *, cgroup: str = "", init: Sequence[str] = container.INIT) -> None:
        """``cgroup`` is the cgroup path of the container, with ``{id}`` where its id shall stand."""
        super().__init__(rootfs_template(), cgroup=cgroup, init=init)
