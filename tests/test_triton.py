"""What Triton's kernels take of a GPU, and what a GPU alone can show of them."""

import importlib
import inspect
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.compare import same_bits

import d3pm_fast as d3
from d3pm_fast import functional
from d3pm_fast.reference.logspace import compute_dtype

triton = pytest.importorskip("triton")
ROOT = Path(__file__).parents[1]
TRITON_OF_TABLE = "3.9.0"
# They read no row of logits, or one beside itself shifted by a class.
NO_ROWS = {"solve_stroke", "logits_of_rows", "gradient_of_rows"}

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(scope="module")
def table():
    from benchmarks.triton_resources import read_table

    return read_table()


def functions():
    """All functions of the kernels, for a GPU and for the host."""
    from d3pm_fast import kernels

    for found in pkgutil.walk_packages(kernels.__path__, f"{kernels.__name__}."):
        module = importlib.import_module(found.name)
        for value in vars(module).values():
            function = getattr(value, "fn", value)
            if inspect.isfunction(function) and function.__module__ == module.__name__:
                yield function, hasattr(value, "fn")


def test_no_function_takes_more_than_12_arguments():
    counts = {
        f"{function.__module__}.{function.__name__}": len(inspect.signature(function).parameters)
        for function, _ in functions()
    }
    assert len(counts) > 150
    assert [name for name, count in counts.items() if count > 12] == []


def test_the_table_has_every_kernel(table):
    """A kernel is a function for a GPU that no other one calls."""
    on_gpu = [function for function, for_gpu in functions() if for_gpu]
    called = {name for function in on_gpu for name in function.__code__.co_names}
    kernels = {function.__name__ for function in on_gpu} - called
    of_float32 = {kernel for kernel, dtype in table if dtype == "float32"}
    assert of_float32 == kernels
    # Cumulative products have no kernel of bfloat16.
    assert {kernel for kernel, dtype in table if dtype == "bfloat16"} == kernels - {"scan_of_row"}


def test_no_kernel_keeps_anything_outside_of_registers(table):
    assert [row for row in table.values() if row.spilled > 0] == []


def test_rows_are_read_16_bytes_at_a_time(table):
    assert {row.kernel for row in table.values() if row.widest_load < 128} == NO_ROWS


def run_module(*command):
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    subprocess.run([sys.executable, *command], check=True, cwd=ROOT, env=environment)


@pytest.mark.exhaustive
@pytest.mark.skipif(triton.__version__ != TRITON_OF_TABLE, reason="the table is another Triton's")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kernels_take_what_the_table_says(table, tmp_path, dtype):
    """A change is welcome in the table, where a review sees it: benchmarks/triton_resources.py."""
    from benchmarks.triton_resources import read_table

    out = tmp_path / "triton.csv"
    run_module("-m", "benchmarks.triton_resources", "--dtypes", dtype, "--out", out)
    assert read_table(out) == {key: row for key, row in table.items() if key[1] == dtype}


@pytest.mark.exhaustive
@pytest.mark.parametrize("size", ["27", "256", "8192"])
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_no_program_of_a_target_spills(target, size):
    module = "-m", "benchmarks.triton_resources", "--check"
    run_module(*module, "--targets", target, "--sizes", size, "--dtypes", "bfloat16")


DIVIDE = """
import re, torch
from benchmarks.triton_calls import calls
from benchmarks.triton_resources import compiled
for name in ("p_sample, shaped", "shaped logits"):
    (program,) = compiled("sm_90", calls(27, torch.float32)[name]).values()
    found = re.findall(r"\\bdiv\\.(?:rn|full|approx)", program.asm["ptx"])
    assert set(found) == {"div.rn"}, found
"""


@pytest.mark.slow
def test_no_choice_rests_on_an_approximate_quotient():
    """The interpreter's quotients are always exact; a GPU's ``/`` of float32 is not."""
    run_module("-c", DIVIDE)


def test_without_a_gpu_or_the_interpreter_the_error_names_the_device(monkeypatch):
    monkeypatch.setattr(d3._environment, "INTERPRET", False)
    with pytest.raises(ValueError, match="impl='triton' needs tensors on a GPU, got cpu"):
        d3.implementation("triton", "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="runs in the interpreter")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's: see conftest.py
def test_a_logistic_pair_is_served_as_logits():
    transition = d3.transitions.uniform(20, d3.schedules.cosine(10))
    x0, x_t = torch.randint(20, (2, 3, 4))
    arguments = x0, x_t, torch.tensor([1, 4, 9])
    results = []
    for name in ("reference", "triton"):
        pair = [torch.linspace(-1, 1, 12).view(3, 4).requires_grad_() for _ in range(2)]
        loss = functional.loss(transition, tuple(pair), *arguments, impl=name)
        loss.backward()
        results.append((loss.detach(), *(value.grad for value in pair)))
    for value, expected in zip(*results, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)


COMPILE_FIRST = """
import numpy, torch
import d3pm_fast as d3
from d3pm_fast import functional
numpy.seterr(all="ignore")
betas = [0.1, 0.2, 0.3]
x, t = torch.zeros(2, 3).long(), torch.tensor([1, 3])
logits = torch.randn(2, 3, 5, requires_grad=True)
for chain in (d3.transitions.uniform(5, betas), d3.transitions.discretized_gaussian(5, betas)):
    for cut in (lambda y: y, lambda y: (y[..., 0], y[..., 1])):
        loss = lambda y: functional.loss(chain, cut(y), x, x, t, impl="triton")
        torch.compile(loss, fullgraph=True, backend="aot_eager")(logits).backward()
"""


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="runs in the interpreter")
def test_the_first_call_of_a_process_may_be_a_compiled_one():
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", COMPILE_FIRST], check=True, env=environment)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("factor", [1.0, 0.3, -2.0, 0.0])
def test_a_gradient_is_scaled_in_place_and_left_alone_by_1(dtype, factor):
    from d3pm_fast.kernels.common.scale import scale_

    device = "cpu" if d3._environment.INTERPRET else "cuda"
    grad = torch.randn(3, 2000, device=device).to(dtype)
    grad[0, 0] = torch.nan
    wide = torch.tensor(factor, device=device, dtype=compute_dtype(dtype))
    expected = (grad.to(wide.dtype) * wide).to(dtype)
    assert scale_(grad, wide) is grad
    assert same_bits(grad, expected)


def test_auto_takes_triton_on_a_gpu_for_what_it_serves():
    gaussian = d3.transitions.discretized_gaussian(4, d3.schedules.linear(5))
    assert d3.implementation("auto", "cuda").name == "triton"
    assert d3.implementation("auto", "cuda", gaussian).name == "triton"
    with pytest.raises(RuntimeError, match="impl='cuda' serves rank-one chains"):
        d3.implementation("cuda", "cuda", gaussian)


FAMILIES = {
    "uniform": lambda num_classes: d3.transitions.uniform(num_classes, d3.schedules.cosine(100)),
    "gaussian": lambda num_classes: d3.transitions.discretized_gaussian(
        num_classes, d3.schedules.linear(100)
    ),
}
every_family = pytest.mark.parametrize("family", FAMILIES)


def problem(family, num_tokens=4096, num_classes=256, dtype=torch.float32):
    """A chain's tensors on the GPU; the matrices of its steps are there too."""
    transition = FAMILIES[family](num_classes).cuda()
    x0 = torch.randint(num_classes, (8, num_tokens // 8), device="cuda")
    t = torch.arange(1, 9, device="cuda") * 12
    x_t = functional.q_sample(transition, x0, t, impl="triton")
    logits = torch.randn(*x0.shape, num_classes, device="cuda").to(dtype)
    return transition, logits, x0, x_t, t


def loss_and_gradient(transition, logits, *tokens, **options):
    leaf = logits.detach().requires_grad_()
    value = functional.loss(transition, leaf, *tokens, impl="triton", **options)
    value.backward()
    return value.detach(), leaf.grad


@needs_gpu
@every_family
def test_nothing_waits_for_the_device(family):
    transition, logits, x0, x_t, t = arguments = problem(family)
    seeds = torch.arange(8, device="cuda")
    of_tokens = t[:, None].expand_as(x0)
    loss_and_gradient(*arguments)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss_and_gradient(*arguments)
        loss_and_gradient(transition, logits, x0, x_t, of_tokens)
        functional.q_posterior(transition, x0, x_t, t, impl="triton")
        functional.p_posterior(transition, logits, x_t, t, impl="triton")
        functional.q_sample(transition, x0, t, seeds=seeds, impl="triton")
        functional.p_sample(transition, logits, x_t, t, seeds=seeds, impl="triton")
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
@every_family
def test_another_stream_gives_the_same(family):
    arguments = problem(family)
    expected = loss_and_gradient(*arguments)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = loss_and_gradient(*arguments)
    torch.cuda.current_stream().wait_stream(stream)
    assert all(map(torch.equal, found, expected))


@needs_gpu
@every_family
def test_a_graph_replays_on_new_numbers(family):
    transition, logits, *tokens = problem(family)
    loss_and_gradient(transition, logits, *tokens)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = loss_and_gradient(transition, logits, *tokens)
    logits.copy_(torch.randn_like(logits))
    graph.replay()
    expected = loss_and_gradient(transition, logits, *tokens)
    assert all(map(torch.equal, captured, expected))


@needs_gpu
@every_family
def test_a_compiled_step_with_graphs_is_the_eager_step(family):
    transition, logits, *tokens = problem(family)

    @torch.compile(mode="reduce-overhead", fullgraph=True)
    def step(leaf):
        return functional.loss(transition, leaf * 2, *tokens, impl="triton")

    for _ in range(3):
        leaf = logits.detach().requires_grad_()
        torch.compiler.cudagraph_mark_step_begin()
        value = step(leaf)
        value.backward()
        expected = loss_and_gradient(transition, 2 * logits, *tokens)
        assert torch.allclose(value, expected[0], rtol=1e-6)
        assert torch.allclose(leaf.grad, 2 * expected[1], rtol=1e-5, atol=0)


@needs_gpu
@pytest.mark.slow
@every_family
def test_more_than_2_to_the_31_numbers_are_all_reached(family):
    transition, logits, x0, x_t, t = problem(
        family, num_tokens=(1 << 23) + 8192, dtype=torch.bfloat16
    )
    assert logits.numel() > 1 << 31
    loss = functional.loss(transition, logits, x0, x_t, t, reduction="none", impl="triton")
    last = [value[:, -64:] for value in (logits, x0, x_t)]
    alone = functional.loss(transition, *last, t, reduction="none", impl="triton")
    assert torch.equal(loss[:, -64:], alone)
    _, gradient = loss_and_gradient(transition, logits, x0, x_t, t, reduction="sum")
    _, of_last = loss_and_gradient(transition, *last, t, reduction="sum")
    assert torch.equal(gradient[:, -64:], of_last)


@needs_gpu
@every_family
@pytest.mark.parametrize("bad", ["x0", "x_t", "t"])
def test_a_bad_index_makes_its_row_nan_and_no_other(bad, family):
    transition, logits, x0, x_t, t = problem(family)
    arguments = {"x0": x0.clone(), "x_t": x_t.clone(), "t": t[:, None].expand_as(x0).clone()}
    clean = functional.loss(transition, logits, **arguments, reduction="none", impl="triton")
    arguments[bad][3, 5] = 1 << 40
    loss = functional.loss(transition, logits, **arguments, reduction="none", impl="triton")
    assert bool(loss[3, 5].isnan())
    clean[3, 5] = loss[3, 5] = 0
    assert torch.equal(loss, clean)


@needs_gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@every_family
def test_tensors_of_a_device_that_is_not_the_current_one_are_served_there(family):
    transition, logits, *tokens = problem(family)
    expected = loss_and_gradient(transition, logits, *tokens)
    moved = [value.to("cuda:1") for value in (transition, logits, *tokens)]
    found = loss_and_gradient(*moved)
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(found, expected, strict=True))
