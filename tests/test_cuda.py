"""The CUDA kernels where there is no GPU: their threads' order, their builds, and simt.h itself.

What they compute is tested with all other implementations, see ``serve`` in conftest.py.
"""

import contextlib
import ctypes
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import simulated
from helpers.chains import likely_pairs, make_chain
from helpers.compare import same_bits
from helpers.once import once
from test_numerics import OF_EVERY_DTYPE, OF_EVERY_FORM, check_digits_of_logits

import d3pm_fast as d3
from d3pm_fast import _compiled, functional

ROOT = simulated.ROOT
ORDERS = range(4)  # 0: the threads' own


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    sources = [ROOT / "tests/simt/planted.cpp", ROOT / "tests/simt/schedule.cpp"]
    library = ctypes.CDLL(str(simulated.build(sources, folder)))
    for name in (
        "barrier_of_some",
        "barriers_apart",
        "shuffle_outside_of_mask",
        "barrier_of_a_block_of_a_cluster",
    ):
        getattr(library, f"planted_{name}").restype = ctypes.c_char_p
    library.planted_reverse.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_bool]
    library.planted_reverse.restype = ctypes.c_char_p
    return library


@pytest.mark.parametrize("with_barrier", [True, False])
def test_a_missing_barrier_shows_in_some_order(planted, with_barrier):
    x, right = torch.arange(64.0), []
    for order in ORDERS:
        out = torch.zeros(64)
        with simulated.scheduled(planted._name, order):
            assert planted.planted_reverse(x.data_ptr(), out.data_ptr(), with_barrier) is None
        right.append(torch.equal(out, x.flip(0)))
        x += 100
    assert all(right) == with_barrier


def test_threads_that_do_not_meet_are_an_error(planted):
    assert b"wait for each other" in planted.planted_barrier_of_some()
    assert b"different places: planted.cpp:" in planted.planted_barriers_apart()
    assert b"not in its mask" in planted.planted_shuffle_outside_of_mask()
    assert b"meet at its barriers" in planted.planted_barrier_of_a_block_of_a_cluster()


@pytest.fixture
def module(monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("a GPU orders its threads itself")
    monkeypatch.setattr(_compiled, "cuda", simulated.module())
    return simulated.module()


def results(num_classes, dtype=torch.float32):
    """Loss, draws and log-probabilities, and gradients."""
    torch.manual_seed(0)
    chain = make_chain("mask_and_uniform", num_classes)
    x0, x_t, t = likely_pairs(chain, chain.edge_times(), count=max(4000 // num_classes, 1))
    logits = torch.randn(len(t), num_classes, dtype=dtype, requires_grad=True)
    arguments = chain.transition, logits, x0, x_t, t
    loss = functional.loss(*arguments, reduction="none", impl="cuda")
    (of_loss,) = torch.autograd.grad(loss.sum(), logits)
    log_p = functional.p_posterior(chain.transition, logits, x_t, t, impl="cuda")
    (of_log_p,) = torch.autograd.grad(log_p.sum(), logits)
    seeds = torch.arange(len(t))
    drawn = functional.p_sample(chain.transition, logits.detach(), x_t, t, seeds=seeds, impl="cuda")
    return loss.detach(), of_loss, drawn, log_p.detach(), of_log_p


def products():
    """Cumulative products of matrices."""
    torch.manual_seed(0)
    return [d3.cumulative_products(torch.rand(3, 64, 64), impl="cuda")]


USERS = {  # of the barriers in a file
    "device.h": partial(results, 2000, torch.float64),  # draws in parts
    "rows.h": partial(results, 2000),
    "loss_cluster.h": partial(results, 17000),
    "products.cu": products,
}
BARRIERS = [
    (path.name, number)
    for path in sorted((ROOT / "csrc/cuda").iterdir())
    for number, line in enumerate(path.read_text().splitlines(), 1)
    if line.strip() in ("__syncthreads();", "cluster_sync();")
]


@pytest.mark.parametrize("num_classes", [27, 300, 2000, 17000])
def test_the_order_of_threads_does_not_matter(module, num_classes):
    truth = results(num_classes)
    for order in ORDERS[1:]:
        with simulated.scheduled(module.__file__, order):
            assert all(map(same_bits, results(num_classes), truth))


@OF_EVERY_DTYPE
@OF_EVERY_FORM
@pytest.mark.parametrize("has_clusters", [True, False])
@pytest.mark.parametrize("num_classes", [17001, 60000])
def test_rows_that_no_block_holds_keep_their_digits(
    module, family, num_classes, has_clusters, dtype
):
    """By a cluster of four blocks or eight, and where a GPU has none."""
    acts = contextlib.nullcontext() if has_clusters else simulated.without_clusters()
    with simulated.erring(), acts:
        check_digits_of_logits("cuda", family, num_classes, dtype)


@pytest.mark.parametrize("file_and_line", BARRIERS, ids="{0[0]}:{0[1]}".format)
def test_no_barrier_can_be_left_out(module, file_and_line):
    """A warp that runs ahead of another lays down what the other has not read yet.

    Where they then decide differently, they wait for each other in vain.
    """
    run = USERS[file_and_line[0]]
    truth = run()
    for order in ORDERS[1:]:
        with simulated.scheduled(module.__file__, order, without=file_and_line):
            try:
                if not all(map(same_bits, run(), truth)):
                    return
            except RuntimeError:
                return
    pytest.fail("every order gave the right results")


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


@pytest.mark.exhaustive
def test_no_kernel_spills_a_register(nvcc_build):
    _, log = nvcc_build
    frames = re.findall(
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log
    )
    kernels = len(re.findall(r"Compiling entry function '\w+' for 'sm_(?:80|90|100)'", log))
    losses = 3 * 14 + 2  # of double by fewer
    posteriors, draws = 3 * 12 + 2, 3 * 5 + 1
    assert kernels == len(frames) == 3 * (1 + 3 + 4 * (1 + 1) + posteriors + draws + losses)
    assert set(frames) == {("0", "0", "0")}


@pytest.mark.exhaustive
def test_the_module_is_small_enough_for_a_wheel(nvcc_build):
    assert nvcc_build[0].stat().st_size < 5e6


@pytest.mark.exhaustive
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_module_is_imported_without_a_gpu_and_says_so(nvcc_build):
    module = simulated.load(nvcc_build[0])
    assert module.device == "cuda"
    chain = 1, 5, 0, 1, 0, 1, 0, -1, -1
    with pytest.raises(RuntimeError, match="CUDA"):
        module.q_sample((chain, 0, (0, 1, 0, 0), 0, 0), 0)
