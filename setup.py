"""Builds `d3pm_fast._cpu`, the C++ kernels. Everything else is declared in pyproject.toml.

Environment:
    D3PM_FAST_REQUIRE_CPU=1: a build of the kernels that fails is an error, not a fallback.
    D3PM_FAST_BUILD_JOBS=N: how many files to compile at once (default: one per core).
"""

import os
import sys
from contextlib import suppress
from glob import glob
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import shorten

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

REQUIRE_CPU = os.environ.get("D3PM_FAST_REQUIRE_CPU", "0") not in ("", "0")

OPENMP_FLAGS = [  # (compiler, linker)
    (["-fopenmp"], ["-fopenmp"]),
    (["-Xpreprocessor", "-fopenmp"], ["-lomp"]),  # Apple's Clang with a separate libomp
]
OPENMP_PROBE = "#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }\n"


class BuildKernels(build_ext):
    """Builds with OpenMP where it works, and goes on without the kernels where nothing does."""

    def build_extension(self, ext):
        try:
            compile_flags, link_flags = self.openmp_flags()
            ext.extra_compile_args += compile_flags
            ext.extra_link_args += link_flags
            super().build_extension(ext)
        except Exception as error:
            if REQUIRE_CPU:
                raise
            # An earlier build must not pass for this one.
            for built in (self.get_ext_fullpath(ext.name), self.get_ext_filename(ext.name)):
                Path(built).unlink(missing_ok=True)
            tell(
                f"d3pm_fast: the C++ kernels could not be built ({shorten(str(error), 70)}), "
                "so only the slower pure-Python reference is installed; for the fast kernels, "
                "install a C++17 compiler and Python's headers, then repeat this installation "
                "with --force-reinstall --no-deps --no-cache-dir"
            )

    def openmp_flags(self):
        """The first flags that compile and link an OpenMP program, or none."""
        for compile_flags, link_flags in OPENMP_FLAGS:
            with TemporaryDirectory() as folder, suppress(CompileError, LinkError):
                source = Path(folder, "probe.cpp")
                source.write_text(OPENMP_PROBE)
                objects = self.compiler.compile(
                    [str(source)], output_dir=folder, extra_postargs=compile_flags
                )
                self.compiler.link_executable(
                    objects, "probe", folder, extra_postargs=link_flags, target_lang="c++"
                )
                return compile_flags, link_flags
        return [], []


def tell(line):
    """Prints to the log and, as pip hides the log of a build that succeeds, to the terminal."""
    print(line, file=sys.stderr, flush=True)
    if not sys.stderr.isatty():
        with suppress(OSError), open("/dev/tty", "w") as terminal:
            print(f"\n{line}", file=terminal)


kernels = Pybind11Extension(
    "d3pm_fast._cpu",
    sorted(glob("csrc/cpu/*.cpp")),
    depends=["setup.py", *sorted(glob("csrc/**/*.h", recursive=True))],
    include_dirs=["csrc"],
    cxx_std=17,  # -fvisibility=hidden comes with Pybind11Extension
    extra_compile_args=["-O3", "-fno-math-errno"],
    optional=not REQUIRE_CPU,
)

with ParallelCompile("D3PM_FAST_BUILD_JOBS"):
    setup(ext_modules=[kernels], cmdclass={"build_ext": BuildKernels})
