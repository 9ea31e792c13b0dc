"""What `pip install` gets: the content of the sdist and the wheel, with and without a compiler."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from email import message_from_string
from functools import partial
from pathlib import Path

import pytest
from helpers.once import once

pytestmark = [pytest.mark.packaging, pytest.mark.slow]

ROOT = Path(__file__).parent.parent
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
NO_COMPILER = {"CC": "false", "CXX": "false"}
BUILD_VARIABLES = {
    *("CC", "CXX", "CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS", "PYTHONPATH"),
    *("D3PM_FAST_REQUIRE_CPU", "D3PM_FAST_IMPL", "D3PM_FAST_REPOSITORY"),
}
JUNK = [
    ".triton/3.6.0/triton/junk.py",
    ".venv/lib/junk.py",
    "build/lib/d3pm_fast/junk.py",
    "d3pm_fast/__pycache__/schedules.cpython-311.pyc",
    "d3pm_fast/_cpu.stale.so",
    "csrc/cpu/loss.o",
    "runs/model.pt",
]


def run(*command, cwd, check=True, **environment):
    """Runs Python without a terminal and with none of the caller's build settings."""
    kept = {name: value for name, value in os.environ.items() if name not in BUILD_VARIABLES}
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env=kept | {name: str(value) for name, value in environment.items()},
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert not check or done.returncode == 0, done.stdout
    return done


def only(folder, pattern):
    (path,) = folder.glob(pattern)
    return path


def wheel_files(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


DATA = {"d3pm_fast/py.typed"}


def python_files(root):
    return {
        path.relative_to(root).as_posix()
        for pattern in ("d3pm_fast/**/*.py", "kernels/**/*.py", "d3pm_fast_command.py")
        for path in root.glob(pattern)
    }


def installed_files(root):
    return {name.replace("kernels/", "d3pm_fast/kernels/", 1) for name in python_files(root)}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The sdist of a work tree in which people have worked."""
    tree = tmp_path_factory.mktemp("tree") / "d3pm_fast"
    skip = shutil.ignore_patterns(
        ".*", "build", "dist", "runs", "*.egg-info", "__pycache__", "*.so"
    )
    shutil.copytree(ROOT, tree, ignore=skip)
    for name in JUNK:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).touch()
    out = tmp_path_factory.mktemp("sdist")
    run("-m", "build", "--sdist", "--no-isolation", "--outdir", out, cwd=tree)
    return only(out, "*.tar.gz")


@pytest.fixture(scope="module")
def source(sdist, tmp_path_factory):
    """The unpacked sdist."""
    folder = tmp_path_factory.mktemp("source")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return only(folder, "*")


@pytest.fixture(scope="module")
def wheel_and_log(sdist):
    """The wheel that a user's pip builds from the sdist, alone with what the build requires."""
    out = once("wheel", partial(build_wheel, sdist))
    return only(out, "*.whl"), (out / "log.txt").read_text()


def build_wheel(sdist, out):
    command = "-m", "pip", "wheel", "--verbose", "--no-deps", "--no-cache-dir", "--wheel-dir"
    done = run(*command, out, sdist, cwd=out, D3PM_FAST_REQUIRE_CPU=1)
    (out / "log.txt").write_text(done.stdout)


@pytest.fixture(scope="module")
def no_torch(tmp_path_factory):
    """A folder for PYTHONPATH in which importing torch fails."""
    folder = tmp_path_factory.mktemp("no_torch")
    (folder / "torch.py").write_text("raise ImportError('the build imported torch')\n")
    return folder


@pytest.fixture(scope="module")
def fallback_and_log(source, no_torch, tmp_path_factory):
    """The wheel built where no compiler works."""
    out = tmp_path_factory.mktemp("fallback")
    done = run(
        *("-m", "build", "--wheel", "--no-isolation", "--outdir", out, source),
        cwd=out,
        PYTHONPATH=no_torch,
        **NO_COMPILER,
    )
    return only(out, "*.whl"), done.stdout


def install(wheel, target):
    run("-m", "pip", "install", "--no-deps", "--target", target, wheel, cwd=target.parent)
    return target


def run_installed(target, *command):
    """Runs Python on what is in `target` and never on the development install, hence -S."""
    path = os.pathsep.join([str(target), sysconfig.get_path("purelib")])
    return run("-S", *command, cwd=target, PYTHONPATH=path).stdout


def look_inside(target):
    code = (
        "import importlib.util, json, d3pm_fast as d3\n"
        "compiled = importlib.util.find_spec('d3pm_fast._cpu') is not None\n"
        "name = d3.implementation('auto').name\n"
        "print(json.dumps([d3.__file__, d3.__version__, compiled, name]))\n"
    )
    output = run_installed(target, "-c", code)
    path, version, compiled, implementation = json.loads(output.splitlines()[-1])
    assert Path(path).is_relative_to(target)
    assert version == VERSION
    return compiled, implementation


def test_sdist_has_what_a_build_needs_and_nothing_else(sdist, source):
    with tarfile.open(sdist) as archive:
        files = {member.name.partition("/")[2] for member in archive if member.isfile()}
    code = [path for path in (ROOT / "csrc").rglob("*.*") if path.is_file()]
    assert {path.suffix for path in code} == {".cpp", ".h", ".cu"}
    assert files >= {path.relative_to(ROOT).as_posix() for path in code}
    assert files >= python_files(ROOT)
    assert files >= {"pyproject.toml", "setup.py", "LICENSE", "README.md", *DATA}
    assert not files & set(JUNK)
    assert {name.partition("/")[0] for name in files if "/" in name} == {
        "csrc",
        "d3pm_fast",
        "d3pm_fast.egg-info",
        "kernels",
    }


@pytest.mark.exhaustive
def test_wheel_has_the_package_and_its_compiled_module(wheel_and_log, source):
    files = wheel_files(wheel_and_log[0])
    compiled = {name for name in files if name.startswith("d3pm_fast/_cpu.")}
    metadata = {name for name in files if name.startswith(f"d3pm_fast-{VERSION}.dist-info/")}
    stubs = {path.relative_to(source).as_posix() for path in source.glob("d3pm_fast/*.pyi")}
    binary = {name for name in compiled if name not in stubs}
    assert len(binary) == 1
    assert files - metadata - binary == installed_files(source) | stubs | DATA
    assert any(name.endswith("/LICENSE") for name in metadata)


@pytest.mark.exhaustive
def test_wheel_is_portable(wheel_and_log):
    wheel, log = wheel_and_log
    compilations = [line for line in log.splitlines() if " -c csrc/" in line.replace("\\", "/")]
    assert compilations
    for line in compilations:
        assert {"-O3", "-std=c++17", "-fno-math-errno", "-fvisibility=hidden"} <= set(line.split())
        assert "-march" not in line
        assert "-mcpu" not in line
        assert "-ffast-math" not in line
    with zipfile.ZipFile(wheel) as archive:
        (module,) = (name for name in archive.namelist() if name.endswith((".so", ".pyd")))
        content = archive.read(module)
    assert b"libtorch" not in content
    assert b"libc10" not in content


@pytest.mark.exhaustive
def test_repaired_wheel_is_small_and_adds_nothing(wheel_and_log, tmp_path):
    """As ``make wheels`` repairs it, without a copy of the OpenMP that PyTorch brings."""
    pytest.importorskip("auditwheel")
    wheel, _ = wheel_and_log
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = "-m", "auditwheel", "repair", "--exclude", "libgomp.so.1", "--wheel-dir", tmp_path
    run(*command, wheel, cwd=tmp_path, PATH=path)
    repaired = only(tmp_path, "*-manylinux_*.whl")
    assert wheel_files(repaired) == wheel_files(wheel)
    assert repaired.stat().st_size < 3e6


@pytest.mark.exhaustive
def test_wheel_installs_and_runs(wheel_and_log, tmp_path):
    target = install(wheel_and_log[0], tmp_path / "site")
    assert look_inside(target) == (True, "cpu")
    usage = run_installed(target, target / "bin" / "d3pm-fast", "--help")
    assert "train" in usage
    assert "sample" in usage


@pytest.mark.exhaustive
def test_compiled_module_needs_no_torch(wheel_and_log, no_torch, tmp_path):
    with zipfile.ZipFile(wheel_and_log[0]) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith((".so", ".pyd")))
        module = archive.extract(name, tmp_path)
    code = (
        "import sys\n"
        "from importlib.util import module_from_spec, spec_from_file_location\n"
        "spec = spec_from_file_location('d3pm_fast._cpu', sys.argv[1])\n"
        "spec.loader.exec_module(module_from_spec(spec))\n"
    )
    run("-c", code, module, cwd=tmp_path, PYTHONPATH=no_torch)


def test_no_compiler_falls_back_with_one_line(fallback_and_log, source):
    wheel, log = fallback_and_log
    (line,) = (line for line in log.splitlines() if "d3pm_fast: " in line)
    assert "pure-Python" in line
    assert "install a C++17 compiler" in line
    assert not any(
        name.startswith("d3pm_fast/_cpu.") and not name.endswith(".pyi")
        for name in wheel_files(wheel)
    )
    assert wheel_files(wheel) >= installed_files(source)


def test_pure_python_wheel_serves_the_reference(fallback_and_log, tmp_path):
    target = install(fallback_and_log[0], tmp_path / "site")
    assert look_inside(target) == (False, "reference")


def test_failed_build_is_an_error_on_request(source, tmp_path):
    done = run(
        *("-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, source),
        cwd=tmp_path,
        check=False,
        D3PM_FAST_REQUIRE_CPU=1,
        **NO_COMPILER,
    )
    assert done.returncode != 0
    assert "d3pm_fast: " not in done.stdout
    assert not list(tmp_path.glob("*.whl"))


def metadata_of(source, out, **environment):
    """What an index would show of the package."""
    command = (
        f"from setuptools import build_meta as b; b.prepare_metadata_for_build_wheel({str(out)!r})"
    )
    run("-c", command, cwd=source, **environment)
    return message_from_string((only(out, "*.dist-info") / "METADATA").read_text())


def test_links_lead_to_the_repository_that_it_is_built_for(source, tmp_path):
    address = "https://example.org/group/d3pm"
    metadata = metadata_of(source, tmp_path, D3PM_FAST_REPOSITORY=address + "/")
    pages = dict(line.split(", ", 1) for line in metadata.get_all("Project-URL"))
    assert pages["Source"] == address
    assert pages["Changelog"] == f"{address}/blob/HEAD/CHANGELOG.md"
    text = metadata.get_payload()
    assert f"git clone {address} d3pm-fast\n" in text
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert f"{address}/blob/HEAD/docs/install.md" in links
    assert f"{address}/raw/HEAD/docs/_static/generation.gif" in links
    assert all(link.startswith(("https://", "#")) for link in links)
    ours = [link.removeprefix(address).split("/", 3)[-1] for link in links if address in link]
    assert ours
    assert all((ROOT / path.partition("#")[0]).exists() for path in ours)


def test_without_an_address_there_are_no_links_to_it(source, tmp_path):
    metadata = metadata_of(source, tmp_path)
    assert metadata["Project-URL"] is None
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload().strip() == (ROOT / "README.md").read_text().strip()
