"""The CUDA module as a module for the CPU: device code as C++, see tests/simt/simt.h."""

import contextlib
import ctypes
import functools
import importlib.util
import os
import subprocess
import sysconfig
from pathlib import Path

import pybind11

from .once import once

ROOT = Path(__file__).parents[2]
FLAGS = "-std=c++17 -O2 -fPIC -fvisibility=hidden -U_FORTIFY_SOURCE"
WARNINGS = "-Wall -Wextra -Werror -Wno-unknown-pragmas"
LIBRARY = "_cuda.so"
ELEMENTS = ["float", "double", "BFloat16", "Float16"]
DEFINES = ["-DD3PM_MODULE=_cuda", '-DD3PM_DEVICE="cpu"']


@functools.cache
def module():
    """Build the module, once a run, and import it."""
    return load(once("simt", build_module) / LIBRARY)


def build_module(folder):
    """Compile all of CUDA's sources."""
    kernels = sorted((ROOT / "csrc/cuda").glob("*.cu"))
    build([*kernels, ROOT / "csrc/cuda/module.cpp", ROOT / "tests/simt/schedule.cpp"], folder)


def load(path):
    """Import a built module from where it is."""
    name = (
        f"{Path(path).resolve().parent.name}._cuda"  # one module of a name is kept and handed out
    )
    spec = importlib.util.spec_from_file_location(name, path)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def build(sources, folder, name=LIBRARY):
    """Compile sources as C++, once for each type where setup.py does, and link a library."""
    compiler = os.environ.get("CXX", "c++")
    includes = ["csrc", "tests/simt", pybind11.get_include(), sysconfig.get_paths()["include"]]
    flags = [
        *FLAGS.split(),
        *WARNINGS.split(),
        *DEFINES,
        *(f"-I{ROOT / path}" for path in includes),
    ]
    units = [
        (source, f"-DD3PM_ELEMENT={element}", folder / f"{element}{source.name}.o")
        for source in sources
        for element in (ELEMENTS if "D3PM_ELEMENT" in source.read_text() else [""])
    ]
    waiting = units
    while waiting:
        jobs = [
            subprocess.Popen([compiler, *flags, element, "-x", "c++", "-c", source, "-o", made])
            for source, element, made in waiting[: os.cpu_count()]
        ]
        assert [job.wait() for job in jobs] == [0] * len(jobs)
        waiting = waiting[len(jobs) :]
    built = folder / name
    objects = [made for *_, made in units]
    subprocess.run([compiler, "-shared", *objects, "-o", built], check=True)
    return built


@contextlib.contextmanager
def scheduled(library, seed, without=("", 0)):
    """Let threads run in a random order, 0: in their own, and without a barrier (file, line)."""
    schedule = ctypes.CDLL(str(library)).simt_schedule
    schedule.argtypes = [ctypes.c_uint64, ctypes.c_char_p, ctypes.c_int]
    file, line = without
    schedule(seed, file.encode(), line)
    try:
        yield
    finally:
        schedule(0, b"", 0)


@contextlib.contextmanager
def erring():
    """Let the hardware's functions err as much as they may."""
    errs = ctypes.CDLL(str(module().__file__)).simt_errs
    errs.argtypes = [ctypes.c_bool]
    errs(True)
    try:
        yield
    finally:
        errs(False)


@contextlib.contextmanager
def without_clusters():
    """Act a GPU before sm_90."""
    has_clusters = ctypes.CDLL(str(module().__file__)).simt_has_clusters
    has_clusters.argtypes = [ctypes.c_bool]
    has_clusters(False)
    try:
        yield
    finally:
        has_clusters(True)
