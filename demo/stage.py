"""What both stories stand on: a real container, the lines of the daemon, and how a story ends."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import grpc

from demo.container import Container, ContainerError, ProcessContainer, RuncContainer, missing_for_runc
from demo.daemon import DaemonError
from demo.rootfs import make_rootfs
from demo.terminal import Terminal

NODE: Final = "node-1"
POD: Final = "web-0"
RPC_TIMEOUT_S: Final = 5.0
"""The deadline that the controller sets."""
EVENTS_TIMEOUT_S: Final = 5.0


class DemoError(Exception):
    """What was shown is not what should have been."""


def run(tell: Callable[[Terminal, contextlib.ExitStack], None]) -> int:
    """Tell a story; 0 when everything that was promised was seen."""
    terminal = Terminal()
    try:
        with contextlib.ExitStack() as stack:
            tell(terminal, stack)
    except (DemoError, DaemonError, ContainerError, OSError) as problem:
        terminal.bad(str(problem))
        return 1
    except grpc.RpcError as problem:
        terminal.bad(f"the daemon answered {problem.code().name}: {problem.details()}")
        return 1
    return 0


def start_container(terminal: Terminal, stack: contextlib.ExitStack) -> Container:
    """Start a container of runc, or the next best thing where there is none."""
    if os.geteuid() != 0:
        raise DemoError("run this as root: containers, and looking into them, take it")
    folder = Path(tempfile.mkdtemp(prefix="argusd-demo-"))
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    make_rootfs(folder / "rootfs")
    container: Container
    if missing := missing_for_runc():
        terminal.detail(f"no runc container here ({missing}): a process in its own namespaces, root and cgroup instead")
        container = stack.enter_context(ProcessContainer(folder / "rootfs"))
    else:
        container = stack.enter_context(RuncContainer(folder / "rootfs"))
    terminal.detail(f"{container.uri}")
    terminal.detail(f"init is pid {container.pid}, cgroup {container.cgroup}")
    return container
