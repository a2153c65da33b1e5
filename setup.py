"""Builds the compiled parts: data plane, cffi module, connect hook, BPF programs.

With ``PYSIDECAR_ASSERT=1`` in the environment the data plane checks its assertions: so it is in the
tree in which it is developed and tested, and not in what ``pip install`` makes. With
``PYSIDECAR_SANITIZE=address,undefined`` or ``thread`` it does, too, and is built with these
sanitizers; the hook with the former ones. Everything else is in ``pyproject.toml``.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from setuptools import Command, setup
from setuptools.command.build import build
from setuptools.command.build_clib import build_clib
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
SANITIZERS = os.environ.get("PYSIDECAR_SANITIZE", "")
SANITIZE = [f"-fsanitize={SANITIZERS}", "-fno-sanitize-recover=all"] if SANITIZERS else []
if SANITIZERS == "thread":
    # It does not see fences. The only one is of the page's seqlock, for other processes.
    SANITIZE.append("-Wno-tsan")
ASSERT = bool(SANITIZE) or os.environ.get("PYSIDECAR_ASSERT") == "1"


def load(path: str) -> ModuleType:
    """The module in a file: a build's own directory is not on its ``sys.path``."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


native = load("pysidecar/dataplane/build_native.py")


class BuildFile(Command):
    """Makes one file of the package that setuptools does not know how to make."""

    user_options: ClassVar[list[tuple[str, str | None, str]]] = [
        ("build-lib=", None, "directory of the built package"),
        ("inplace", "i", "put it into the source tree"),
    ]
    boolean_options: ClassVar[list[str]] = ["inplace"]
    file: ClassVar[str]
    sources: ClassVar[str]  # the directory that holds them

    def make(self, output: Path) -> None:
        raise NotImplementedError

    def initialize_options(self) -> None:
        self.build_lib: str | None = None
        self.inplace = False
        self.editable_mode = False  # set by setuptools for `pip install -e`

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    @property
    def _built(self) -> Path:
        assert self.build_lib is not None
        return Path(self.build_lib, self.file)

    def run(self) -> None:
        output = Path(self.file) if self.inplace or self.editable_mode else self._built
        sources = self.get_source_files()
        if output.exists() and output.stat().st_mtime >= max(
            Path(source).stat().st_mtime for source in sources
        ):
            return
        print(f"building {output}", file=sys.stderr)
        output.parent.mkdir(parents=True, exist_ok=True)
        self.make(output.resolve())

    def get_source_files(self) -> list[str]:
        return sorted(str(path) for path in Path(self.sources).iterdir() if path.is_file())

    def get_outputs(self) -> list[str]:
        return [str(self._built)] if self._built.exists() else []

    def get_output_mapping(self) -> dict[str, str]:
        return {str(self._built): self.file} if self.editable_mode else {}


class BuildHook(BuildFile):
    """Compiles ``libmosnhook.so`` into the package."""

    description = "compile the connect hook"
    file = "pysidecar/libmosnhook.so"
    sources = "hook"

    def make(self, output: Path) -> None:
        load("hook/build.py").build(output, sanitize="address" in SANITIZERS)


class BuildPrograms(BuildFile):
    """Compiles the BPF programs; without clang or libbpf's headers there is no acceleration."""

    description = "compile the BPF programs"
    file = "pysidecar/dataplane/accelerate.bpf.o"
    sources = "pysidecar/dataplane/l4/bpf"

    def make(self, output: Path) -> None:
        multiarch = sysconfig.get_config_var("MULTIARCH") or ""
        command = [
            *("clang", "-target", "bpf", "-mcpu=v3", "-O2", "-g"),
            *("-Wall", "-Wextra", "-Werror", "-idirafter", f"/usr/include/{multiarch}"),
            *("-c", f"{self.sources}/accelerate.bpf.c", "-o", str(output)),
        ]
        output.unlink(missing_ok=True)
        header = "#include <bpf/bpf_helpers.h>\n"
        probe = ["cc", "-E", "-include", "linux/bpf.h", "-o", os.devnull, "-x", "c", "-"]
        if shutil.which("clang") is None:
            missing = "clang"
        elif subprocess.run(probe, input=header, text=True, stderr=subprocess.DEVNULL).returncode:
            missing = "libbpf's headers (libbpf-dev)"
        else:
            subprocess.run(command, check=True)
            return
        print(f"without acceleration by BPF: {missing} not found", file=sys.stderr)


class BuildExt(build_ext):
    """Links the sanitizers' runtime where they are asked for."""

    def finalize_options(self) -> None:
        super().finalize_options()
        if SANITIZE:
            for extension in self.extensions:
                extension.extra_compile_args += SANITIZE
                extension.extra_link_args += SANITIZE


class BuildLibrary(build_clib):
    """Makes the archive anew: an old one still has what was made of files that are no more. And
    compiles as many files at a time as there are processors."""

    def build_libraries(self, libraries: Any) -> None:
        compile_in_turn = self.compiler.compile

        def compile_at_once(sources: list[str], **settings: Any) -> list[str]:
            with ThreadPoolExecutor(os.cpu_count()) as executor:
                made = executor.map(lambda each: compile_in_turn([each], **settings), sources)
                return [each for objects in made for each in objects]

        self.compiler.compile = compile_at_once
        for name, _ in libraries:
            Path(self.build_clib, self.compiler.library_filename(name)).unlink(missing_ok=True)
        super().build_libraries(libraries)


class Build(build):
    """The usual steps, the hook and the BPF programs."""

    def finalize_options(self) -> None:
        super().finalize_options()
        # Objects are only made anew for newer sources, not for other flags.
        if ASSERT:
            self.build_temp += "-asserting"

    sub_commands: ClassVar = [
        *build.sub_commands,
        ("build_hook", None),
        ("build_programs", None),
    ]


data_plane: Any = {
    "sources": native.SOURCES,
    "obj_deps": {"": [*native.HEADERS, "setup.py"]},
    "include_dirs": native.INCLUDE_DIRS,
    "cflags": [
        *(
            "-std=gnu11",
            "-D_GNU_SOURCE",
            "-O2",
            "-g",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-fvisibility=hidden",
            # Python's own flags, which come before these, have -DNDEBUG.
            "-UNDEBUG" if ASSERT else "-DNDEBUG",
        ),
        *SANITIZE,
    ],
}
if not native.has_http2():
    print("without HTTP/2: libnghttp2 1.50 or newer (libnghttp2-dev) not found", file=sys.stderr)
setup(
    libraries=[("pysidecar_dataplane", data_plane)],
    cffi_modules=["pysidecar/dataplane/build_native.py:ffibuilder"],
    # cffi builds for the stable ABI: one wheel serves this version of Python and all later ones.
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
    cmdclass={
        "build": Build,
        "build_clib": BuildLibrary,
        "build_ext": BuildExt,
        "build_hook": BuildHook,
        "build_programs": BuildPrograms,
    },
)
