"""Builds what is not Python: the Cython extensions and the code generated from ``proto/``."""

from __future__ import annotations

import os
import re
from importlib import resources
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
PROTO = ROOT / "proto"
GENERATED = ROOT / "argusd" / "proto"
# CFLAGS that name a level of optimisation, those of a distribution or of a sanitizer, take the place of ours.
OPTIMIZE = [] if re.search(r"(^|\s)-O", os.environ.get("CFLAGS", "")) else ["-O2", "-g1"]


def generate_protobuf() -> None:
    """Write ``argusd/proto/*_pb2*.py`` (and ``.pyi`` where mypy-protobuf is installed)."""
    from grpc_tools import protoc  # noqa: PLC0415  (a build requirement only)

    GENERATED.mkdir(exist_ok=True)
    sources = sorted(path.name for path in PROTO.glob("*.proto"))
    arguments = [
        "protoc",
        f"-I{PROTO}",
        f"-I{resources.files('grpc_tools') / '_proto'}",
        f"--python_out={GENERATED}",
        f"--grpc_python_out={GENERATED}",
        f"--pyi_out={GENERATED}",
    ]
    if protoc.main([*arguments, *sources]) != 0:
        raise SystemExit("setup.py: protoc failed on proto/*.proto")
    for path in GENERATED.glob("*_pb2_grpc.py"):  # the generator knows no packages
        text = re.sub(r"^import (\w+_pb2) as", r"from argusd.proto import \1 as", path.read_text(), flags=re.MULTILINE)
        path.write_text(text)


class BuildPy(build_py):
    """Generates the protobuf code before the modules of the packages are collected."""

    def run(self) -> None:
        """Generate, then collect."""
        generate_protobuf()
        super().run()


class BuildExt(build_ext):
    """Builds the extensions, and the protobuf code with them, for ``build_ext --inplace`` collects no modules."""

    def finalize_options(self) -> None:
        """Compile on all cores."""
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def run(self) -> None:
        """Generate, then build."""
        generate_protobuf()
        super().run()


extensions = [
    Extension(
        ".".join(path.relative_to(ROOT).with_suffix("").parts),
        [str(path.relative_to(ROOT))],
        extra_compile_args=[*OPTIMIZE, "-Wall", "-Wextra", "-Wno-unused-parameter", "-fno-semantic-interposition"],
        extra_link_args=["-pthread"],
    )
    for path in sorted((ROOT / "argusd").rglob("*.pyx"))
]

setup(
    ext_modules=cythonize(extensions, language_level=3, annotate=False),
    cmdclass={"build_py": BuildPy, "build_ext": BuildExt},
)
