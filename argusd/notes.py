"""What runtimes note about their containers: names, for those that came without anybody telling us of them.

containerd and CRI-O keep an OCI bundle for each container, docker a configuration of its own. They are read through the
root of process 1, where no component may be a link, and are untrusted text all the same: who deploys a pod chooses
what its names are. Whatever is too long, malformed, or not there is empty.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from argusd.pidfiles import ROOT, read_note

__all__ = ["Note", "read"]

_FILES: Final = (
    "run/containerd/io.containerd.runtime.v2.task/k8s.io/{id}/config.json",
    "run/containers/storage/overlay-containers/{id}/userdata/config.json",
    "var/lib/docker/containers/{id}/config.v2.json",
)
_BYTES: Final = 1 << 20
_NAME_CHARACTERS: Final = 253  # the longest name of Kubernetes
_NAMES: Final = ("io.kubernetes.cri.container-name", "io.kubernetes.container.name")
_TYPES: Final = ("io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType", "io.kubernetes.docker.type")
_SANDBOXES: Final = frozenset({"sandbox", "podsandbox"})


@dataclass(frozen=True, slots=True)
class Note:
    """What is noted about a container; ``sandbox`` for the one that only holds the namespaces of its pod."""

    name: str = ""
    sandbox: bool = False


def read(full: str, root: Path = ROOT) -> Note:
    """Return what is noted about the container ``full``, a full id; an empty note when nothing is. Blocks."""
    for form in _FILES:
        text = _content(root, form.format(id=full).split("/"))
        if text:
            return _parsed(text)
    return Note()


def _parsed(text: bytes) -> Note:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return Note()
    annotations = _mapping(content, "annotations") or _mapping(_mapping(content, "Config"), "Labels")
    name = next((value for key in _NAMES if (value := _text(annotations, key))), "")
    return Note(name, any(_text(annotations, key) in _SANDBOXES for key in _TYPES))


def _mapping(content: object, key: str) -> Mapping[str, Any]:
    found = content.get(key) if isinstance(content, dict) else None
    return found if isinstance(found, dict) else {}


def _text(content: Mapping[str, Any], key: str) -> str:
    found = content.get(key)
    return found if isinstance(found, str) and len(found) <= _NAME_CHARACTERS else ""


def _content(root: Path, names: list[str]) -> bytes:
    """Return a file's content; nothing when it is longer than anything that a runtime writes."""
    content = read_note(root, names, _BYTES + 1)
    return content if len(content) <= _BYTES else b""
