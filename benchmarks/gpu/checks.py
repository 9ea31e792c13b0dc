"""The kernels' results on small inputs, beside the reference's on the CPU in float64.

What is timed is checked, by the same compiled programs, and what is not timed with the first size.
"""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import d3pm_fast as d3
from d3pm_fast import functional

from ..cases import GAUSSIAN, Case, make_inputs, make_transition
from ..providers import loss_and_gradient
from . import device, problems
from .problems import Task, is_installed, of_rank_one
from .table import Table

NUMBERS = 1 << 16  # of logits, about
TIMED = ["loss", "p_sample", "p_posterior"]
OTHERS = ["q_sample", "q_posterior", "shaped p_sample"]
ALLOWED = {  # the relative error of a tensor, or the share of draws that differ
    torch.int64: 2e-3,
    torch.float64: 1e-11,
    torch.float32: 2e-5,
    torch.bfloat16: 1e-2,
}


class Check(NamedTuple):
    """One implementation's result for one task."""

    operation: str
    family: str
    num_classes: int
    dtype: str
    implementation: str
    error: float  # the largest over its tensors, in units of what is allowed
    outcome: str  # "right", "wrong", or what went wrong


def checks(out: Path) -> Table:
    """Return the table of checks."""
    return Table(out / "checks.csv", Check)


def cases(sizes: Sequence[int]) -> Iterator[Task]:
    """Yield what is checked, what matters most first."""
    first, dense = sizes[0], problems.DENSE_SHAPE[-1]
    for operation in [*TIMED, *OTHERS]:
        yield from of_rank_one(operation, [first])
    for operation in [*TIMED, *OTHERS[:2]]:
        for dtype in problems.LOGITS_DTYPES:
            yield Task(operation, GAUSSIAN, dense, dtype)
    for num_classes in problems.PRODUCTS_SIZES:
        for dtype in problems.PRODUCTS_DTYPES:
            yield Task("products", "any", num_classes, dtype)
    yield Task("logistic loss", "uniform", first, "float32")
    for operation in TIMED:
        yield from of_rank_one(operation, sizes[1:])


def check(tasks: Sequence[Task], out: Path, until: float) -> None:
    """Check those tasks that are not in the table yet, until ``time.monotonic()`` says so.

    Raises:
        SystemExit: the device was lost; another process can go on behind what did it.
    """
    table = checks(out)
    done = {row[:5] for row in table.read()}
    for task in tasks:
        for name in problems.BY:
            if (*task, name) in done or time.monotonic() > until:
                continue
            if not is_installed(name, None if task.family == "any" else chain_of(task)):
                continue
            print(*task, name, flush=True)
            table.append(Check(*task, name, *outcome_of(task, name)))
            if not device.is_alive():
                raise SystemExit(device.LOST)


def outcome_of(task: Task, name: str) -> tuple[float, str]:
    """Return an implementation's error, and in a word what it is."""
    try:
        compute, arguments = prepare(task)
        found = compute(*on_device(arguments), name)
        truth = compute(*in_double(arguments, task.operation), "reference")
        error = max(error_of(x.cpu(), y) for x, y in zip(found, truth, strict=True))
    except Exception as failure:
        return float("inf"), " ".join(f"{type(failure).__name__}: {failure}".split())[:300]
    return float(f"{error:.3g}"), "right" if error <= 1 else "wrong"


def error_of(found: Tensor, truth: Tensor) -> float:
    """Return the error of a tensor in units of what its type is allowed."""
    allowed = ALLOWED[found.dtype]
    if found.dtype == torch.int64:
        return float((found != truth).double().mean()) / allowed
    found, truth = found.double(), truth.double()
    finite = truth.isfinite()
    if not torch.equal(found.isfinite(), finite) or not torch.equal(found[~finite], truth[~finite]):
        return float("inf")
    error, size = (x[finite].norm() for x in (found - truth, truth))
    return float(error / size if size > 0 else error) / allowed


def chain_of(task: Task) -> d3.transitions.Transition:
    """Return a task's chain."""
    return make_transition(task.family, task.num_classes)


def prepare(task: Task) -> tuple[Callable[..., tuple[Tensor, ...]], tuple[Any, ...]]:
    """Return what computes a task, and its arguments on the CPU."""
    dtype = problems.DTYPES[task.dtype]
    if task.operation == "products":
        shape = 32, task.num_classes, task.num_classes
        return products, (torch.randn(shape, dtype=dtype).softmax(-1), torch.randn(shape).to(dtype))
    positions = min(max(NUMBERS // (problems.BATCH * task.num_classes), 16), 128)
    made = make_inputs(Case("loss", task.family, problems.BATCH, positions, task.num_classes))
    logits = made.logits.to(dtype)
    return COMPUTE[task.operation], (made.transition, logits, made.x0, made.x_t, made.t)


def on_device(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return copies of the arguments there."""
    return tuple(copy.deepcopy(value).to(device.DEVICE) for value in arguments)


def in_double(arguments: tuple[Any, ...], operation: str) -> tuple[Any, ...]:
    """Return the arguments in float64; draws compare numbers of one type."""
    if "sample" in operation:
        return arguments
    return tuple(
        value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for value in arguments
    )


def loss(chain, logits, x0, x_t, t, impl):
    return loss_and_gradient(lambda y: functional.loss(chain, y, x0, x_t, t, impl=impl), logits)


def logistic_loss(chain, logits, x0, x_t, t, impl):
    pair = [logits[..., i].contiguous().requires_grad_() for i in (0, 1)]
    value = functional.loss(chain, tuple(pair), x0, x_t, t, impl=impl)
    return value.detach(), *torch.autograd.grad(value, pair)


def p_posterior(chain, logits, x0, x_t, t, impl):
    leaf = logits.detach().requires_grad_()
    log_p = functional.p_posterior(chain, leaf, x_t, t, impl=impl)
    upstream = torch.randint(1, 9, log_p.shape, generator=torch.Generator().manual_seed(0)) / 8
    upstream = upstream.to(log_p).where(log_p.isfinite(), 0)  # exact in any dtype
    return log_p.detach(), *torch.autograd.grad(log_p, leaf, upstream)


def q_posterior(chain, logits, x0, x_t, t, impl):
    return (functional.q_posterior(chain, x0, x_t, t, dtype=logits.dtype, impl=impl),)


def seeds_of(x):
    return torch.arange(len(x), device=x.device)


def p_sample(chain, logits, x0, x_t, t, impl):
    return (functional.p_sample(chain, logits, x_t, t, seeds=seeds_of(x_t), impl=impl),)


def shaped_p_sample(chain, logits, x0, x_t, t, impl):
    shaped = functional.Shaped(logits, -logits, 2.0, 0.5, 20, 0.9)
    return (functional.p_sample(chain, shaped, x_t, t, seeds=seeds_of(x_t), impl=impl),)


def q_sample(chain, logits, x0, x_t, t, impl):
    return (functional.q_sample(chain, x0, t, seeds=seeds_of(x0), impl=impl),)


def products(matrices, upstream, impl):
    leaf = matrices.detach().requires_grad_()
    found = d3.cumulative_products(leaf, impl=impl)
    return found.detach(), *torch.autograd.grad(found, leaf, upstream)


COMPUTE = {
    "loss": loss,
    "logistic loss": logistic_loss,
    "p_posterior": p_posterior,
    "q_posterior": q_posterior,
    "p_sample": p_sample,
    "shaped p_sample": shaped_p_sample,
    "q_sample": q_sample,
}
