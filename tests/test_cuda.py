"""The CUDA kernels where there is no GPU: their threads' order, their builds, and simt.h itself.

What they compute is tested with all other implementations, see ``serve`` in conftest.py.
"""

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import simulated
from helpers.chains import likely_pairs, make_chain
from helpers.compare import same_bits
from helpers.once import once

from d3pm_fast import _compiled, functional

ROOT = simulated.ROOT
ORDERS = range(4)  # 0: the threads' own


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    sources = [ROOT / "tests/simt/planted.cpp", ROOT / "tests/simt/seed.cpp"]
    library = ctypes.CDLL(str(simulated.build(sources, folder)))
    for function in (library.planted_barrier_of_some, library.planted_shuffle_outside_of_mask):
        function.restype = ctypes.c_char_p
    library.planted_reverse.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_bool]
    library.planted_reverse.restype = ctypes.c_char_p
    return library


@pytest.mark.parametrize("with_barrier", [True, False])
def test_a_missing_barrier_shows_in_some_order(planted, with_barrier):
    x, right = torch.arange(64.0), []
    for order in ORDERS:
        simulated.set_order(planted._name, order)
        out = torch.zeros(64)
        assert planted.planted_reverse(x.data_ptr(), out.data_ptr(), with_barrier) is None
        right.append(torch.equal(out, x.flip(0)))
        x += 100
    assert all(right) == with_barrier


def test_threads_that_wait_for_others_in_vain_are_an_error(planted):
    assert b"wait for each other" in planted.planted_barrier_of_some()
    assert b"not in its mask" in planted.planted_shuffle_outside_of_mask()


def results(module, num_classes, dtype):
    """Loss, gradient and draws by a simulated module."""
    chain = make_chain("mask_and_uniform", num_classes)
    x0, x_t, t = likely_pairs(chain, chain.edge_times(), 40)
    logits = torch.randn(len(t), num_classes).to(dtype).requires_grad_()
    arguments = chain.transition, logits, x0, x_t, t
    loss = functional.loss(*arguments, reduction="none", impl="cuda")
    loss.sum().backward()
    seeds = torch.arange(len(t))
    model = chain.transition, logits.detach(), x_t, t
    drawn = functional.p_sample(*model, seeds=seeds, impl="cuda")
    return loss.detach(), logits.grad, drawn, functional.p_posterior(*model, impl="cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU orders its threads itself")
@pytest.mark.parametrize("num_classes", [27, 300, 2000])
def test_the_order_of_threads_does_not_matter(monkeypatch, num_classes):
    module = simulated.module()
    monkeypatch.setattr(_compiled, "cuda", module)
    found = []
    for order in ORDERS:
        simulated.set_order(module.__file__, order)
        torch.manual_seed(0)
        found.append(results(module, num_classes, torch.float32))
    simulated.set_order(module.__file__, 0)
    for other in found[1:]:
        assert all(map(same_bits, found[0], other))


def test_a_barrier_taken_out_of_the_loss_shows(monkeypatch, tmp_path):
    """Rows are laid down by all threads of a block and then read by one each."""
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    header = tmp_path / "csrc/cuda/loss.cuh"
    text = header.read_text()
    assert text.count("  __syncthreads();") == 2
    header.write_text(text.replace("  __syncthreads();", "", 1))
    names = [path.name for path in (ROOT / "csrc/cuda").glob("*.cu")]
    sources = [tmp_path / "csrc/cuda" / name for name in [*names, "module.cpp"]]
    built = simulated.build([*sources, ROOT / "tests/simt/seed.cpp"], tmp_path)
    monkeypatch.setattr(_compiled, "cuda", simulated.load(built))
    chain = make_chain("uniform", 27)
    x0, x_t, t = likely_pairs(chain, chain.edge_times(), 40)
    logits = torch.randn(len(t), 27)
    arguments = chain.transition, logits, x0, x_t, t
    truth = functional.loss(*arguments, reduction="none", impl="reference")
    losses = []
    for order in ORDERS:
        simulated.set_order(built, order)
        losses.append(functional.loss(*arguments, reduction="none", impl="cuda"))
    assert not all(torch.allclose(loss, truth, rtol=1e-4) for loss in losses)


@pytest.fixture(scope="module")
def nvcc_build():
    """The real module for all GPUs, and what the assembler said."""
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    folder = once("nvcc", run_nvcc)
    (built,) = (folder / "d3pm_fast").glob("_cuda*.so")
    return built, (folder / "log.txt").read_text()


def run_nvcc(folder):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"D3PM_FAST_CUDA": "1", "PATH": path}
    environment["NVCC_APPEND_FLAGS"] = "-Xptxas -v"
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", folder]
    done = subprocess.run(
        [*command, "--build-temp", folder / "temp"],
        cwd=ROOT,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    (folder / "log.txt").write_text(done.stdout + done.stderr)


@pytest.mark.slow
def test_no_kernel_spills_a_register(nvcc_build):
    _, log = nvcc_build
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    kernels = len(re.findall(r"Compiling entry function '\w+' for 'sm_(?:80|90|100)'", log))
    assert kernels == len(spills) == 3 * (1 + 3 + 4 * (5 + 4 + 4))
    assert set(spills) == {("0", "0")}


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_module_is_imported_without_a_gpu_and_says_so(nvcc_build):
    module = simulated.load(nvcc_build[0])
    assert module.device == "cuda"
    chain = 1, 5, 0, 1, 0, 1, 0, -1
    with pytest.raises(RuntimeError, match="CUDA"):
        module.q_sample(chain, 0, 0, 1, 0, 0, 0, 0)
