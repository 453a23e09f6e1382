"""The table of docs/runtimes.md: every way to run a container that a test finds and watches one by."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Final, Literal

from tests.e2e.runtime import PidNamespace

Layout = Literal["v1", "hybrid", "v2"]

SCOPE_PODS: Final = {
    "guaranteed": "/kubepods.slice/kubepods-pod{uid}.slice",
    "burstable": "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{uid}.slice",
    "besteffort": "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{uid}.slice",
}
FOLDER_PODS: Final = {
    "guaranteed": "/kubepods/pod{uid}",
    "burstable": "/kubepods/burstable/pod{uid}",
    "besteffort": "/kubepods/besteffort/pod{uid}",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One container: who starts it, and where it then lies."""

    layout: Layout
    runtime: str
    cgroup: str
    """The end of its path; ``{uid}`` is the pod's, ``{id}`` the container's."""
    form: str
    """Whose cgroup path this is: the driver, and who asks for it."""
    quality: str = ""
    """The pod's quality of service."""
    pids: PidNamespace = "own"
    beside: str = ""
    """A cgroup that holds a process from before the container's start, which is not the container's."""

    @property
    def name(self) -> str:
        """What the test of this row is called."""
        words = (self.layout, self.runtime, self.form, self.quality, "" if self.pids == "own" else f"{self.pids} pids")
        return "-".join(word.replace(" ", "_") for word in words if word)

    @property
    def columns(self) -> tuple[str, ...]:
        """What stands in the documentation of this row, and of its like on another layout."""
        path = self.cgroup.format(uid="<uid>", id="<id>")
        beside = f", beside `{self.beside.rpartition('/')[2].format(id='<id>')}`" if self.beside else ""
        return (self.runtime, self.form, self.quality, f"`{path}`{beside}", self.pids)


LAYOUTS: Final[tuple[Layout, ...]] = ("v1", "hybrid", "v2")
HEAD: Final = ("runtime", "driver", "pod", "cgroup path", "pid namespace", *LAYOUTS)


def oci_rows(layout: Layout, runtime: str) -> list[Row]:
    """A bare runtime, told what others would tell it."""
    rows = [Row(layout, runtime, f"{pod}/{{id}}", "cgroupfs", quality) for quality, pod in FOLDER_PODS.items()]
    scopes = [("containerd", "cri-containerd-{id}.scope", ""), ("CRI-O", "crio-{id}.scope", "crio-conmon-{id}.scope")]
    for (client, scope, beside), (quality, pod) in itertools.product(scopes, SCOPE_PODS.items()):
        monitor = f"{pod}/{beside}" if beside else ""
        rows.append(Row(layout, runtime, f"{pod}/{scope}", f"systemd, {client}", quality, beside=monitor))
    scope, folder = SCOPE_PODS["burstable"], FOLDER_PODS["burstable"]
    monitor = f"{folder}/crio-conmon-{{id}}"
    rows += [
        Row(layout, runtime, f"{scope}/docker-{{id}}.scope", "systemd, docker", "burstable"),
        Row(layout, runtime, f"{folder}/crio-{{id}}", "cgroupfs, CRI-O", "burstable", beside=monitor),
        Row(layout, runtime, f"{folder}/crio-{{id}}", "cgroupfs, CRI-O", "burstable", "host", monitor),
        Row(layout, runtime, "/system.slice/docker-{id}.scope", "systemd, docker"),
        Row(layout, runtime, "/machine.slice/libpod-{id}.scope/container", "systemd, podman"),
    ]
    return rows


def rows_of(layout: Layout) -> list[Row]:
    """What is run on one layout."""
    own = {"docker": "/docker/{id}", "podman": "/libpod_parent/libpod-{id}", "containerd": "/default/{id}"}
    pod = FOLDER_PODS["burstable"] + "/{id}"
    rows = oci_rows(layout, "runc")
    for runtime, cgroup in own.items():
        rows.append(Row(layout, runtime, cgroup, "cgroupfs"))
        if runtime != "containerd":
            rows.append(Row(layout, runtime, cgroup, "cgroupfs", pids="host"))
    rows += [Row(layout, "docker", f"{folder}/{{id}}", "cgroupfs", quality) for quality, folder in FOLDER_PODS.items()]
    rows += [Row(layout, "cri", f"{folder}/{{id}}", "cgroupfs", quality) for quality, folder in FOLDER_PODS.items()]
    rows += [Row(layout, "cri", pod, "cgroupfs", "burstable", pids) for pids in ("pod", "host")]
    slice_name = "/kubepods-burstable-pod{uid}.slice:cri-containerd:{id}"
    rows.append(Row(layout, "cri", slice_name, "systemd, runc cgroupfs", "burstable"))
    return rows


# crun refuses to run where v1 and v2 are both mounted.
ROWS: Final = [
    *(*rows_of("v1"), *oci_rows("v1", "crun")),
    *rows_of("hybrid"),
    *(*rows_of("v2"), *oci_rows("v2", "crun")),
]


def table() -> str:
    """The rows as a table of Markdown, with a column for each layout."""
    found: dict[tuple[str, ...], set[str]] = {}
    for row in ROWS:
        found.setdefault(row.columns, set()).add(row.layout)
    rows = [(*columns, *("yes" if layout in on else "" for layout in LAYOUTS)) for columns, on in found.items()]
    lines = [HEAD, ("---",) * len(HEAD), *rows]
    return "\n".join("| " + " | ".join(columns) + " |" for columns in lines)
