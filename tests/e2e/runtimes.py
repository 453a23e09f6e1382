"""Real container runtimes, offline: what starts a container, what its init is, how to work in it, how to end it."""

from __future__ import annotations

from typing import Final

from tests.e2e.containerd import Containerd, Cri
from tests.e2e.docker import Docker, Podman
from tests.e2e.oci import Crun, Runc
from tests.e2e.runtime import Runtime

__all__ = ["RUNTIMES", "Containerd", "Cri", "Crun", "Docker", "Podman", "Runc", "Runtime"]

RUNTIMES: Final[dict[str, type[Runtime]]] = {
    "runc": Runc,
    "crun": Crun,
    "podman": Podman,
    "docker": Docker,
    "containerd": Containerd,
    "cri": Cri,
}
