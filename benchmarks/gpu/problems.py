"""What is measured: our kernels, other ways to compute the same, and a copy of the bytes."""

import copy
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

import d3pm_fast as d3
from d3pm_fast import functional, reference
from d3pm_fast.ops.products import scan_by_torch
from d3pm_fast.products import CumulativeProducts

from .. import bench_dense, bench_loss, bench_p_sample, bench_posterior
from ..cases import FAMILIES, GAUSSIAN, OURS, Case, Inputs, make_tokens, make_transition
from ..floors import CHIPS, floor_of, work_of_chain, work_of_products
from ..providers import loss_and_gradient
from . import device
from .device import Run

SIZES = [256, 27, 8192, 1024, 131072]  # the first is measured first
COMPILED = [256, 8192]  # sizes that torch.compile is given
MOST_DENSE_CLASSES = 1024  # of the other ways that look up matrices
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
LOGITS_DTYPES = ["bfloat16", "float32"]
BATCH = 8
BYTES_OF_LOGITS = 1 << 28  # past every second-level cache
DENSE_SHAPE = 32, 4096, 256
PRODUCTS_STEPS, PRODUCTS_SIZES, PRODUCTS_DTYPES = 1000, [27, 64], ["float32", "float64"]
BY = {"triton": "ours, Triton", "cuda": "ours, CUDA C++"}
BESIDE_COMPILED = "loss beside torch.compile"


class Task(NamedTuple):
    """What is measured at a time, by name."""

    operation: str
    family: str
    num_classes: int
    dtype: str


class Problem(NamedTuple):
    """The providers of a task, and what their numbers are divided by."""

    count: int  # of tokens, or steps
    runs: dict[str, Run]
    bytes_moved: int
    gradient_bytes: int
    floor_us: float | None = None  # where it is counted for this chip


def tasks(sizes: Sequence[int]) -> Iterator[Task]:
    """Yield all tasks, what matters most first."""
    first, *others = sizes
    yield from of_rank_one("loss", [first])
    yield from of_rank_one("p_sample", [first])
    for dtype in LOGITS_DTYPES:
        yield Task("dense loss", GAUSSIAN, DENSE_SHAPE[-1], dtype)
    for num_classes in PRODUCTS_SIZES:
        for dtype in PRODUCTS_DTYPES:
            yield Task("products", "any", num_classes, dtype)
    for num_classes in others:
        yield from of_rank_one("loss", [num_classes])
        yield from of_rank_one("p_sample", [num_classes])
    yield from of_rank_one("p_posterior", sizes)
    yield from of_rank_one(BESIDE_COMPILED, [size for size in sizes if size in COMPILED])


def of_rank_one(operation: str, sizes: Iterable[int]) -> Iterator[Task]:
    """Yield an operation's tasks on rank-one chains."""
    for num_classes in sizes:
        for dtype in LOGITS_DTYPES:
            for family in FAMILIES:
                yield Task(operation, family, num_classes, dtype)


def make(task: Task) -> Problem:
    """Return a task's problem, its tensors on the device."""
    if task.operation == "products":
        return products(task)
    if task.operation == "dense loss":
        return dense_loss(task)
    positions = positions_of(task.num_classes, task.dtype)
    inputs = inputs_of(Case("loss", task.family, BATCH, positions, task.num_classes), task.dtype)
    made = {
        "loss": rank_one_loss,
        "p_sample": draws,
        "p_posterior": log_probabilities,
        BESIDE_COMPILED: beside_compiled,
    }
    return made[task.operation](inputs, task.dtype)


def positions_of(num_classes: int, dtype: str) -> int:
    """Return how many positions fill the bytes of logits, a multiple of 16 as Triton likes them."""
    size = BATCH * num_classes * DTYPES[dtype].itemsize
    return max(BYTES_OF_LOGITS // size // 16, 1) * 16


def inputs_of(case: Case, dtype: str) -> Inputs:
    """Return a case's tensors on the device; the chain is a copy, which nothing else moves."""
    tokens = (x.to(device.DEVICE) for x in make_tokens(case, torch.Generator().manual_seed(0)))
    transition = copy.deepcopy(make_transition(case.family, case.num_classes)).to(device.DEVICE)
    shape = case.batch, case.positions, case.num_classes
    generator = torch.Generator(device.DEVICE).manual_seed(0)
    logits = torch.randn(*shape, dtype=DTYPES[dtype], device=device.DEVICE, generator=generator)
    return Inputs(case, transition, logits, *tokens)


def by_each(make_run: Callable[[str], Run], implementations: Iterable[str] = BY) -> dict[str, Run]:
    """Return what is made for each of our implementations that is installed."""
    return {BY[impl]: make_run(impl) for impl in implementations if is_installed(impl)}


def is_installed(impl: str, transition: d3.transitions.Transition | None = None) -> bool:
    """Return whether an implementation is installed, and serves a chain."""
    try:
        d3.implementation(impl, device.DEVICE, transition)
    except (RuntimeError, ValueError):  # not here, or not on this device
        return False
    return True


def loss_by(inputs: Inputs, impl: str, mask: Tensor | None = None) -> Run:
    """Return forward and backward of the mean loss; a mask says which tokens count."""

    def loss(logits: Tensor) -> Tensor:
        tokens = inputs.x0, inputs.x_t, inputs.t
        return functional.loss(inputs.transition, logits, *tokens, mask=mask, impl=impl)

    return lambda: loss_and_gradient(loss, inputs.logits)


def rank_one_loss(inputs: Inputs, dtype: str) -> Problem:
    """Return the mean loss of a rank-one chain, forward and backward."""
    runs = by_each(partial(loss_by, inputs))
    names = ["closed form eager", "cross_entropy"]
    if dtype == "float32" and inputs.case.num_classes <= MOST_DENSE_CLASSES:
        names.append("dense eager")
    runs |= {name: bench_loss.LOSS.providers[name].make(inputs) for name in names}
    if importlib.util.find_spec("liger_kernel"):
        from liger_kernel.transformers import LigerCrossEntropyLoss

        liger = LigerCrossEntropyLoss()
        flat = inputs.x0.flatten()
        runs["Liger cross-entropy"] = lambda: loss_and_gradient(
            lambda x: liger(x.flatten(0, 1), flat), inputs.logits.clone()
        )
    return problem_of(inputs, runs, bench_loss.bytes_moved)


def beside_compiled(inputs: Inputs, dtype: str) -> Problem:
    """Return the loss again, by torch.compile too: compiling takes long."""
    torch.compiler.reset()  # it stops at some number of shapes for a function
    runs = by_each(partial(loss_by, inputs), ["triton"])
    name = "closed form compiled"
    runs[name] = bench_loss.LOSS.providers[name].make(inputs)
    return problem_of(inputs, runs, bench_loss.bytes_moved)


def log_probabilities(inputs: Inputs, dtype: str) -> Problem:
    """Return log p(x_{t-1} | x_t) of a rank-one chain."""
    arguments = inputs.transition, inputs.logits, inputs.x_t, inputs.t
    runs = by_each(lambda impl: partial(functional.p_posterior, *arguments, impl=impl))
    return problem_of(inputs, runs, bench_posterior.bytes_moved)


def draws(inputs: Inputs, dtype: str) -> Problem:
    """Return draws from p(x_{t-1} | x_t) of a rank-one chain."""
    arguments = inputs.transition, inputs.logits, inputs.x_t, inputs.t
    seeds = torch.arange(inputs.case.batch, device=device.DEVICE)  # no time for sending them there
    runs = by_each(lambda impl: partial(functional.p_sample, *arguments, seeds=seeds, impl=impl))
    return problem_of(inputs, runs, bench_p_sample.bytes_moved)


def problem_of(
    inputs: Inputs, runs: dict[str, Run], bytes_moved: Callable[[Inputs], int]
) -> Problem:
    """Return the problem of an operation on these inputs."""
    return Problem(inputs.case.num_tokens, runs, bytes_moved(inputs), inputs.logits.nbytes)


def dense_loss(task: Task) -> Problem:
    """Return the mean loss of a Gaussian chain, forward and backward."""
    inputs = inputs_of(Case("dense loss", GAUSSIAN, *DENSE_SHAPE), task.dtype)
    runs = by_each(partial(loss_by, inputs), ["triton"])
    if task.dtype == "float32" and task.num_classes <= MOST_DENSE_CLASSES:
        others = bench_dense.DENSE.providers.keys() - {OURS, "copy", "dense compiled"}
        runs |= {name: bench_dense.DENSE.providers[name].make(inputs) for name in sorted(others)}
    count = inputs.case.num_tokens
    work = work_of_chain("loss and gradient", task.num_classes, task.dtype, count=count)
    moved, gradient = bench_dense.bytes_moved(inputs), inputs.logits.nbytes
    return Problem(count, runs, moved, gradient, floor_us(work))


def products(task: Task) -> Problem:
    """Return cumulative products, forward and backward."""
    shape = PRODUCTS_STEPS, task.num_classes, task.num_classes
    logits, upstream = torch.randn(2, *shape, device=device.DEVICE, dtype=DTYPES[task.dtype])
    matrices = logits.softmax(-1)

    def both_ways(function: Callable[[Tensor], Tensor]) -> Run:
        def run() -> tuple[Tensor, ...]:
            leaf = matrices.detach().requires_grad_()
            return torch.autograd.grad(function(leaf), leaf, upstream)

        return run

    runs = by_each(lambda impl: both_ways(partial(d3.cumulative_products, impl=impl)))
    runs["in blocks, PyTorch"] = both_ways(lambda x: CumulativeProducts.apply(x, scan_by_torch))
    runs["loop, PyTorch"] = both_ways(reference.cumulative_products)
    works = [
        work_of_products(operation, task.num_classes, task.dtype, PRODUCTS_STEPS)
        for operation in ("products", "products gradient")
    ]
    moved = sum(work.count * work.bytes_each for work in works)
    return Problem(PRODUCTS_STEPS, runs, moved, matrices.nbytes, floor_us(*works))


def floor_us(*works: Any) -> float | None:
    """Return the least time of works in a row on this chip, None for one that is not known."""
    chip = chip_name()
    return None if chip is None else sum(floor_of(work, chip).floor_us for work in works)


def chip_name() -> str | None:
    """Return the name of this chip's datasheet, None where there is none."""
    name = device.name()
    return next((chip for chip in CHIPS if chip.split()[0] in name), None)
