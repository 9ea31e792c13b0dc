"""Builds `d3pm_fast._cpu`, the C++ kernels, and where asked to `d3pm_fast._cuda`, CUDA's.

Everything else is declared in pyproject.toml. Environment:
    D3PM_FAST_REQUIRE_CPU=1: a build of the C++ kernels that fails is an error, not a fallback.
    D3PM_FAST_BUILD_JOBS=N: how many files to compile at once (default: one per core).
    D3PM_FAST_CUDA=1: build the CUDA kernels, with nvcc from CUDA_HOME or the path.
    D3PM_FAST_CUDA_ARCHS=80,90: for which GPUs (default: 80, 90 and 100 as far as nvcc knows them).
    D3PM_FAST_REPOSITORY=https://...: where the repository is, for the links of what is published.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from contextlib import suppress
from glob import glob
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import shorten

import pybind11
from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

REQUIRE_CPU = os.environ.get("D3PM_FAST_REQUIRE_CPU", "0") not in ("", "0")
REPOSITORY = os.environ.get("D3PM_FAST_REPOSITORY", "").rstrip("/")
WITH_CUDA = os.environ.get("D3PM_FAST_CUDA", "0") not in ("", "0")

OPENMP_FLAGS = [  # (compiler, linker)
    (["-fopenmp"], ["-fopenmp"]),
    (["-Xpreprocessor", "-fopenmp"], ["-lomp"]),  # Apple's Clang with a separate libomp
]
OPENMP_PROBE = "#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }\n"


class BuildKernels(build_ext):
    """Builds with OpenMP where it works, and goes on without the kernels where nothing does."""

    def build_extension(self, ext):
        if ext.name == CUDA.name:
            build_cuda(ext.sources, Path(self.get_ext_fullpath(ext.name)), Path(self.build_temp))
            return
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


def build_cuda(sources, target, folder):
    """Builds the CUDA kernels by ninja; any failure is an error, for they were asked for."""
    home = os.environ.get("CUDA_HOME")
    nvcc = str(Path(home, "bin", "nvcc")) if home else shutil.which("nvcc")
    if nvcc is None:
        raise CompileError("D3PM_FAST_CUDA=1 needs nvcc: set CUDA_HOME or put it on the path")
    known = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True)
    asked = os.environ.get("D3PM_FAST_CUDA_ARCHS")
    archs = asked.split(",") if asked else [a for a in CUDA_ARCHS if f"sm_{a}" in known.stdout]
    codes = [f"-gencode arch=compute_{arch},code=sm_{arch}" for arch in archs]
    codes.append(f"-gencode arch=compute_{archs[-1]},code=compute_{archs[-1]}")
    includes = ["csrc", pybind11.get_include(), sysconfig.get_paths()["include"]]
    flags = ["-std=c++17 -O3 -Xfatbin -compress-all -Xcompiler -fPIC,-fvisibility=hidden", *codes]
    options = subprocess.run([nvcc, "--help"], capture_output=True, text=True, check=True).stdout
    if "--compress-mode" in options:
        flags.append("--compress-mode=size")
    flags += ["-DD3PM_MODULE=_cuda", "'-DD3PM_DEVICE=\"cuda\"'"]
    flags += [f"-I{Path(path).absolute()}" for path in includes]
    folder.mkdir(parents=True, exist_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        "rule compile",
        f"  command = {nvcc} {' '.join(flags)} $element -MD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "rule link",
        f"  command = {nvcc} -shared -Xlinker --strip-all $in -o $out",
    ]
    objects = []
    for source in map(Path, sources):
        once_a_type = "D3PM_ELEMENT" in source.read_text()
        for element in CUDA_ELEMENTS if once_a_type else [""]:
            objects.append(f"{element}{source.name}.o")
            lines += [
                f"build {objects[-1]}: compile {source.absolute()}",
                f"  element = -DD3PM_ELEMENT={element}",
            ]
    lines.append(f"build {target.absolute()}: link {' '.join(objects)}")
    Path(folder, "build.ninja").write_text("\n".join(lines) + "\n")
    jobs = os.environ.get("D3PM_FAST_BUILD_JOBS")
    options = ["-j", jobs] if jobs else []
    subprocess.run([shutil.which("ninja") or "ninja", "-C", folder, *options], check=True)


def description():
    """The README; its links lead to the repository, where that is known."""
    text = Path("README.md").read_text(encoding="utf-8")
    if not REPOSITORY:
        return text
    text = re.sub(r"git clone REPOSITORY (\S+).*", rf"git clone {REPOSITORY} \1", text)

    def absolute(link):
        kind = "raw" if link[1] else "blob"
        return f"{link[1]}[{link[2]}]({REPOSITORY}/{kind}/HEAD/{link[3]})"

    return re.sub(r"(!?)\[([^]]*)\]\((?!https?:|#)([^)]+)\)", absolute, text)


def urls():
    """Where what is published leads to; nowhere where the repository is not known."""
    pages = {
        "Source": "",
        "Documentation": "/blob/HEAD/docs/index.md",
        "Changelog": "/blob/HEAD/CHANGELOG.md",
        "Issues": "/issues",
    }
    return {name: REPOSITORY + path for name, path in pages.items()} if REPOSITORY else {}


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

CUDA_ARCHS = ["80", "90", "100"]
CUDA_ELEMENTS = ["float", "double", "BFloat16", "Float16"]  # as the sources name them
CUDA = Extension("d3pm_fast._cuda", [*sorted(glob("csrc/cuda/*.cu")), "csrc/cuda/module.cpp"])

with ParallelCompile("D3PM_FAST_BUILD_JOBS"):
    setup(
        long_description=description(),
        long_description_content_type="text/markdown",
        project_urls=urls(),
        ext_modules=[kernels, CUDA] if WITH_CUDA else [kernels],
        cmdclass={"build_ext": BuildKernels},
    )
