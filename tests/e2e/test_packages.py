"""The source distribution, and the wheel that is built from it: complete, without generated C, and able to start."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import pytest

PROJECT: Final = Path(__file__).resolve().parents[2]
# What a clean clone has not; .git stays behind as well, for a source distribution must not need it.
BUILT: Final = shutil.ignore_patterns(
    ".*", "build", "dist", "*.egg-info", "__pycache__", "*.so", "*_pb2*",
    *(f"{path.stem}.c" for path in PROJECT.glob("argusd/**/*.pyx")),
)  # fmt: skip
SDIST: Final = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),  # all extensions are compiled
]


def run(*command: str | Path, folder: Path) -> str:
    """Run a command of this Python, without optimisation: whether it compiles is the question, not how fast it is."""
    environment = {**os.environ, "CFLAGS": "-O0 -g0", "PYTHONPATH": "", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    result = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return result.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made from a copy of the tree in which nothing has been built."""
    folder = tmp_path_factory.mktemp("sdist")
    shutil.copytree(PROJECT, folder / "clone", ignore=BUILT)
    return folder / run("-c", SDIST, folder, folder=folder / "clone").splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source distribution, with the locked tools and without an index."""
    folder = tmp_path_factory.mktemp("wheel")
    offline = ("--no-deps", "--no-index", "--no-build-isolation")
    run("-m", "pip", "wheel", *offline, "--wheel-dir", folder, sdist, folder=folder)
    (path,) = folder.glob("argusd-*.whl")
    return path


def sources(*patterns: str) -> set[str]:
    """Files of the project, relative to it."""
    return {str(path.relative_to(PROJECT)) for pattern in patterns for path in PROJECT.glob(pattern)}


def generated_c(names: Iterable[str]) -> list[str]:
    """Those that Cython has written."""
    return [name for name in names if re.match(r"argusd/.*\.c$", name)]


def test_the_source_distribution_is_complete(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        "Makefile",
        "constraints.txt",
        "setup.py",
        "pyproject.toml",
    } <= names
    wanted = ("argusd/**/*.pyx", "argusd/**/*.pxd", "argusd/*.py", "argusd/*.pyi", "proto/*.proto", "tests/**/*.py")
    assert sources(*wanted, "docs/*", "packaging/*.*") <= names
    assert generated_c(names) == []


def test_the_wheel_holds_what_runs_and_no_sources_of_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    modules = {name.partition(".")[0] for name in names if name.endswith(".so")}
    assert modules == {name.removesuffix(".pyx") for name in sources("argusd/**/*.pyx")}
    stems = [path.stem for path in (PROJECT / "proto").glob("*.proto")]
    assert {f"argusd/proto/{stem}_pb2{rest}" for stem in stems for rest in (".py", ".pyi", "_grpc.py")} <= names
    assert {"argusd/py.typed", *sources("argusd/*.pyi")} <= names
    assert any(name.endswith("/LICENSE") for name in names)
    assert [name for name in names if name.endswith((".pyx", ".pxd"))] + generated_c(names) == []


def test_the_installed_wheel_starts(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    run("-m", "pip", "install", "--no-deps", "--no-index", "--target", target, wheel, folder=tmp_path)
    start = "import sys; sys.path.insert(0, sys.argv.pop(1)); from argusd.__main__ import main; sys.exit(main())"
    assert "version 1." in run("-c", start, target, "-version", folder=tmp_path)
    # Everything that the daemon imports, native modules and generated ones included.
    imports = "import sys; sys.path.insert(0, sys.argv[1]); import argusd.daemon, argusd.server; print(argusd.__file__)"
    assert run("-c", imports, target, folder=tmp_path).startswith(str(target))


def test_the_metadata_says_who_what_and_for_which_python(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(name).decode()
    for line in ("License-Expression: MIT", "License-File: LICENSE", "Author: argusd maintainers"):
        assert line in metadata
    assert "Requires-Python: ==3.11.*" in metadata
    assert not re.search(r"^Requires-Dist: [^;]*==[^;]*$", metadata, re.MULTILINE), "an exact pin clashes with others"
