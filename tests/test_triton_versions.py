"""The kernels with an older Triton, from a folder that ``make test`` fills; see the Makefile."""

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from test_triton import TRITON_OF_TABLE

import d3pm_fast as d3
from d3pm_fast import _compiled, _triton

triton = pytest.importorskip("triton")
ROOT = Path(__file__).parents[1]
OLDER = "3.6.0"


def run_with(version, *command, interpret):
    """Run a module of Python with a Triton, "" for the environment's own."""
    environment = os.environ | {"TRITON_INTERPRET": str(int(interpret)), "OMP_NUM_THREADS": "1"}
    if version:
        folder = ROOT / ".triton" / version
        if not (folder / "triton").exists():
            pytest.skip(f"make .triton/{version}/installed was not run")
        environment["PYTHONPATH"] = str(folder)
    result = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    return result.stdout


of_the_table = pytest.mark.skipif(
    triton.__version__ == TRITON_OF_TABLE,
    reason="test_triton.py compiles the kernels with this Triton",
)


@pytest.mark.slow
@pytest.mark.parametrize("version", [OLDER, pytest.param("", marks=of_the_table)])
def test_every_program_compiles_without_a_spill(version):
    sample = "--targets", "sm_90", "--sizes", "27", "--dtypes", "float32"
    told = run_with(version, "benchmarks.triton_resources", "--check", *sample, interpret=False)
    assert f"Triton {version or triton.__version__}," in told
    assert ", 0 of them spill, 0 calls do not compile" in told


@pytest.mark.slow
def test_every_kernel_runs_in_an_older_interpreter():
    of_numpy = "ignore:Conversion of an array with ndim > 0:DeprecationWarning"
    options = "-q", "-W", of_numpy, "-p", "no:cacheprovider"
    told = run_with(OLDER, "pytest", *options, "tests/test_every_kernel.py", interpret=True)
    assert " passed" in told
    assert "skipped" not in told


def installed_as(monkeypatch, **versions):
    def version(package):
        if package.replace("-", "_") not in versions:
            raise PackageNotFoundError(package)
        return versions[package.replace("-", "_")]

    monkeypatch.setattr(_triton, "version", version)
    monkeypatch.setattr(_triton, "WHY_NOT", _triton.why_not())


TOO_OLD = "Triton 3.3.1 is too old: 3.4 is the oldest that these kernels support"


@pytest.mark.parametrize("name", ["triton", "pytorch_triton"])
def test_one_sentence_for_a_triton_that_is_too_old(monkeypatch, name):
    installed_as(monkeypatch, **{name: "3.3.1"})
    with pytest.raises(RuntimeError, match=f"^{TOO_OLD}; impl='reference' works without it$"):
        d3.implementation("triton", "cuda")
    monkeypatch.setattr(_compiled, "cuda", None)
    found = d3.implementation("auto", "cuda")
    assert found == ("reference", f"{TOO_OLD}, nor is the CUDA module installed")


@pytest.mark.parametrize("version", ["3.4.0", "3.10.1", "4.0.0+git1234"])
def test_newer_tritons_serve(monkeypatch, version):
    installed_as(monkeypatch, triton=version)
    assert d3.implementation("auto", "cuda").name == "triton"


def test_a_triton_of_an_unknown_package_is_tried(monkeypatch):
    installed_as(monkeypatch)
    assert d3.implementation("auto", "cuda").name == "triton"
