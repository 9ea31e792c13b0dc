"""Each kernel's time beside the least that the count of issue slots allows it.

Data are made so that a kernel goes the way that was counted. The time is that of the library's own
kernels in a call, without PyTorch's; the count is that of the Triton that is installed, where
``python -m benchmarks.gpu`` had the time for counting, else that of the committed table.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from d3pm_fast import functional

from .. import issue_slots, slot_table
from ..anchors import anchors
from ..cases import Case, Inputs
from ..chips import CHIPS
from ..pipes import seconds_of
from ..slot_calls import OF_MATRICES, every_key
from ..slot_table import Key
from . import device, problems, rates
from .device import Run
from .table import Table
from .timing import noted

NEAR, FAR = 14.0, 8.0  # added to the logit of x_0, or of another class
CALLS = 5


class Counted(NamedTuple):
    """A kernel's time and what was counted, in microseconds."""

    implementation: str
    operation: str
    chain: str
    path: str
    num_classes: int
    dtype: str
    measured_us: float
    ratio: float  # of the measured time to the largest of the next three
    bound: str  # which that is
    memory_us: float
    pipe_us: float
    latency_us: float


def counted(out: Path) -> Table:
    """Return the table of kernels."""
    return Table(out / "counted.csv", Counted)


def keys(chip: str, sizes: Sequence[int], implementations: Iterable[str]) -> list[Key]:
    """Return the rows of the count that a chip can be held against, what matters most first."""
    found = [
        key
        for key in every_key()
        if (
            key.target == CHIPS[chip].target
            and (key.implementation in implementations and key.num_classes in sizes)
        )
        or key.implementation == "anchor"
    ]
    order = ["anchor", *implementations]
    return sorted(
        found,
        key=lambda key: (
            sizes.index(key.num_classes) if key.num_classes in sizes else -1,
            order.index(key.implementation),
        ),
    )


def count(chip: str, sizes: Sequence[int], out: Path) -> None:
    """Count with the Triton that is here; CUDA C++ has the compiler of the table."""
    there = slot_table.read()
    for row in issue_slots.counted(keys(chip, sizes, ["triton"])):
        there[row.key] = row
        slot_table.write(there.values(), out / slot_table.TABLE.name)


def measure(
    chip: str, sizes: Sequence[int], implementations: Iterable[str], out: Path, until: float
) -> None:
    """Measure the rates that are assumed, and those kernels that have no times yet."""
    if not rates.rates(out).path.exists():
        rates.measure(CHIPS[chip], out)
    own = out / slot_table.TABLE.name
    there = slot_table.read(own if own.exists() else slot_table.TABLE)
    done = {row[:6] for row in counted(out).read()}
    for key in keys(chip, sizes, implementations):
        if key not in there or key[:6] in done:
            continue
        if time.monotonic() > until:
            print("\nno time for more", flush=True)
            return
        task = problems.Task(key.operation, key.chain, key.num_classes, key.dtype)
        with noted(task, f"{key.implementation}, {key.path}", out):
            row = beside(there[key], chip)
            counted(out).append(row)
            print(
                *row[:6], f"{row.ratio:.2f} of the least time, which is {row.bound}'s", flush=True
            )


def beside(row: slot_table.Row, chip: str) -> Counted:
    """Time a kernel."""
    run, elements = call_of(row.key)
    run()
    measured = device.kernel_seconds(run, CALLS) / elements
    moved = issue_slots.moved_by_element(row.key)
    least = seconds_of(row.clocks / 1000, *moved, row.in_flight, CHIPS[chip])
    bound = max(least, key=least.__getitem__)
    times = (float(f"{1e6 * elements * each:.4g}") for each in (measured, *least.values()))
    of_kernel, *of_count = times
    return Counted(*row.key[:6], of_kernel, round(measured / least[bound], 3), bound, *of_count)


def call_of(key: Key) -> tuple[Run, int]:
    """Return a call of a kernel on data that take it the way that was counted, and its elements."""
    inputs = inputs_of(key)
    num_tokens, num_classes = inputs.case.num_tokens, key.num_classes
    if key.implementation == "anchor":
        logits, tokens = inputs.logits.flatten(0, 1), inputs.x0.flatten()
        return anchors(logits, tokens)[key.operation], num_tokens * num_classes
    elements = num_tokens * (1 if key.operation == "q_sample" else num_classes)
    if key.path == "settled" and key.chain != "absorbing":
        counts = torch.zeros_like(inputs.x0, dtype=torch.bool)
        return problems.loss_by(inputs, key.implementation, counts), elements
    return CALLS_OF[key.operation](inputs, key.implementation), elements


def draws(inputs: Inputs, impl: str) -> Run:
    """Return draws of x_{t-1}."""
    seeds = torch.arange(inputs.case.batch, device=device.DEVICE)
    of = inputs.transition, inputs.logits, inputs.x_t, inputs.t
    return partial(functional.p_sample, *of, seeds=seeds, impl=impl)


def corruptions(inputs: Inputs, impl: str) -> Run:
    """Return draws of x_t."""
    seeds = torch.arange(inputs.case.batch, device=device.DEVICE)
    of = inputs.transition, inputs.x0, inputs.t
    return partial(functional.q_sample, *of, seeds=seeds, impl=impl)


def posteriors(inputs: Inputs, impl: str) -> Run:
    """Return log p(x_{t-1} | x_t)."""
    of = inputs.transition, inputs.logits, inputs.x_t, inputs.t
    return partial(functional.p_posterior, *of, impl=impl)


def posterior_gradients(inputs: Inputs, impl: str) -> Run:
    """Return the gradient of log p(x_{t-1} | x_t) alone."""
    leaf = inputs.logits.requires_grad_()
    result = functional.p_posterior(inputs.transition, leaf, inputs.x_t, inputs.t, impl=impl)
    upstream = torch.ones_like(result)
    return lambda: torch.autograd.grad(result, leaf, upstream, retain_graph=True)


LOSS = "loss and gradient"
CALLS_OF: dict[str, Callable[[Inputs, str], Run]] = {
    LOSS: problems.loss_by,
    "p_posterior": posteriors,
    "p_posterior_grad": posterior_gradients,
    "p_sample": draws,
    "q_sample": corruptions,
}


def inputs_of(key: Key) -> Inputs:
    """Return logits and tokens for the way of a count."""
    if key.chain == OF_MATRICES[1]:
        shape = problems.DENSE_SHAPE[:2]
        return problems.inputs_of(
            Case(key.operation, "gaussian", *shape, key.num_classes), key.dtype
        )
    positions = problems.positions_of(key.num_classes, key.dtype)
    case = Case(key.operation, key.chain or "uniform", problems.BATCH, positions, key.num_classes)
    inputs = problems.inputs_of(case, key.dtype)
    if key.chain == "absorbing":
        inputs.x_t.fill_(key.num_classes - 1)
    if key.path == "settled":
        inputs.x_t.copy_(inputs.x0)
    elif key.operation == LOSS:
        x0 = inputs.x0.unsqueeze(-1)
        at, shift = (x0, NEAR) if key.path == "full" else ((x0 + 1) % key.num_classes, FAR)
        inputs.logits.scatter_add_(-1, at, torch.full_like(at, shift, dtype=inputs.logits.dtype))
    return inputs
