"""The compiled kernels called by several Python threads, which need no lock of the interpreter."""

import subprocess
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from threading import Barrier

import pytest
import torch
from helpers.chains import make_chain
from helpers.compare import same_bits

import d3pm_fast as d3
from d3pm_fast import _compiled, functional

ROOT = Path(__file__).parents[1]
NUM_THREADS = 4


def make_inputs(transition, seed, count=50):
    """A chain, logits, and possible x_0, x_t and t of ``count`` tokens."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, transition.num_classes, generator=generator)
    x0 = torch.randint(transition.num_classes, (count,), generator=generator)
    t = torch.randint(1, transition.num_steps + 1, (count,), generator=generator)
    x_t = functional.q_sample(transition, x0, t, generator=generator, impl="reference")
    return transition, logits, x0, x_t, t


def run_all(impl, transition, logits, x0, x_t, t):
    """Every operation once, and the gradients."""
    logits = logits.clone().requires_grad_()
    loss = functional.loss(transition, logits, x0, x_t, t, reduction="none", impl=impl)
    log_p = functional.p_posterior(transition, logits, x_t, t, impl=impl)
    gradients = [torch.autograd.grad(one.sum(), logits)[0] for one in (loss, log_p.exp())]
    seeds = torch.arange(len(t))
    drawn = functional.p_sample(transition, logits.detach(), x_t, t, seeds=seeds, impl=impl)
    noised = functional.q_sample(transition, x0, t, seeds=seeds, impl=impl)
    log_q = functional.q_posterior(transition, x0, x_t, t, impl=impl)
    return [loss.detach(), log_p.detach(), *gradients, drawn, noised, log_q]


def test_threads_at_once_get_what_one_gets(compiled):
    chains = [make_chain("mask_and_uniform", 40).transition] * 10
    if compiled == "cpu":
        places, times = torch.rand(40, 2), torch.linspace(0.1, 0.9, 7)
        chains.append(d3.transitions.discretized_gaussian(40, times))
        chains.append(d3.transitions.nearest_neighbor(places, 12, times, memory_budget=1))
    inputs = [make_inputs(chain, seed) for seed, chain in enumerate(chains)]
    truth = [run_all(compiled, deepcopy(chain), *rest) for chain, *rest in inputs]
    start = Barrier(NUM_THREADS)

    def work(first):
        start.wait()
        turns = [(first + turn) % len(inputs) for turn in range(len(inputs))]
        return all(all(map(same_bits, run_all(compiled, *inputs[i]), truth[i])) for i in turns)

    with ThreadPoolExecutor(NUM_THREADS) as threads:
        assert all(threads.map(work, range(NUM_THREADS)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's kernels are started at once")
def test_other_threads_run_while_a_kernel_does(compiled, monkeypatch):
    transition = make_chain("uniform", 300).transition
    module = getattr(_compiled, compiled)
    kernel, call = module.loss, []

    def timed(*args):
        call[:] = [time.perf_counter()]
        result = kernel(*args)
        call.append(time.perf_counter())
        return result

    def is_middle_seen(count):
        """Whether this thread ran in the middle of a call of so many tokens by another."""
        inputs = make_inputs(transition, seed=0, count=count)
        seen = []
        done = thread.submit(functional.loss, *inputs, impl=compiled)
        while not done.done():
            seen.append(time.perf_counter())
        begin, end = call
        rest = 0.3 * (end - begin)
        return any(begin + rest < moment < end - rest for moment in seen)

    monkeypatch.setattr(module, "loss", timed)
    least = 20 if compiled == "cuda" else 10000
    with ThreadPoolExecutor(1) as thread:
        assert any(is_middle_seen(least << power) for power in range(5))


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_modules_declare_that_they_need_no_lock(name):
    source = (ROOT / "csrc" / name / "module.cpp").read_text()
    assert source.count("PYBIND11_MODULE(") == source.count(", m, py::mod_gil_not_used()) {") == 1


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="Python has its lock")
def test_importing_the_kernels_leaves_the_lock_off():
    program = "import sys, d3pm_fast._cpu; sys.exit(sys._is_gil_enabled())"
    subprocess.run([sys.executable, "-c", program], check=True)
