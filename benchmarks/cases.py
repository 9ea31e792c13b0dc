"""What is measured: cases, their inputs, and the operations that offer providers for them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

import d3pm_fast as d3

from .host_chains import HOST_CHAINS

NUM_STEPS = 100
FAMILIES = ("uniform", "absorbing")
# The Gaussian at times from 1 to T, and only where its products have no cheaper form.
GAUSSIAN_STEPS = 1000
GAUSSIAN, GAUSSIAN_FULL = "gaussian", "gaussian, full form"
# The graph of the 10 nearest neighbours, at these times tau; a class is left at a rate of 1 on
# average, so tau is about the number of jumps.
NEIGHBORS = {f"nearest neighbors, tau = {tau:g}": tau for tau in (0.1, 1.0, 10.0, 100.0)}
# A step that unmasks 5 % of all tokens from any t: one of 20 in which as many are masked by each.
FEW_STEPS = 20
FEW = "absorbing, 5 % unmasked"
LONG = "uniform, T = 1000"
MARGINAL = "marginal"  # the classes are as frequent as words: class j in proportion to 1 / (j + 1)
OURS = "ours"

Run = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """One operation on tokens of shape (batch, positions) of one family of transitions."""

    operation: str
    family: str
    batch: int
    positions: int
    num_classes: int

    @property
    def num_tokens(self) -> int:
        return self.batch * self.positions

    @property
    def group(self) -> str:
        """Cases of one group are timed in one interleaved run."""
        return f"{self.operation} {self.batch}x{self.positions}x{self.num_classes}"

    @property
    def name(self) -> str:
        return f"{self.group} {self.family}"


@dataclass(frozen=True)
class Inputs:
    """A case's tensors, made as a training step would find them."""

    case: Case
    transition: d3.transitions.Transition
    logits: Tensor
    x0: Tensor
    x_t: Tensor
    t: Tensor


class Provider(NamedTuple):
    """One way to compute an operation.

    ``make`` prepares what need not be timed and returns what is, or None where the provider
    cannot run. ``tolerance`` is the distance from our result that is let through; None for a
    provider that computes something else.
    """

    make: Callable[[Inputs], Run | None]
    tolerance: float | None = None


@dataclass(frozen=True)
class Operation:
    """An operation's cases and providers; ``providers`` has ``OURS`` among its keys."""

    name: str
    cases: list[Case]
    providers: dict[str, Provider]
    bytes_moved: Callable[[Inputs], int]
    distance: Callable[[Any, Any, Inputs], float]


def cases(
    operation: str, *shapes: tuple[int, int, int], families: Sequence[str] = FAMILIES
) -> list[Case]:
    """Return a case of every family for every shape ``(batch, positions, K)``."""
    return [Case(operation, family, *shape) for shape in shapes for family in families]


@lru_cache(maxsize=2)
def make_transition(family: str, num_classes: int) -> d3.transitions.Transition:
    """Return the family's chain; the two Gaussian ones share theirs."""
    if family in HOST_CHAINS:
        return HOST_CHAINS[family](num_classes)
    if family == "uniform":
        return d3.transitions.uniform(num_classes, d3.schedules.cosine(NUM_STEPS))
    if family == "absorbing":
        betas = d3.schedules.jsd(NUM_STEPS)
        return d3.transitions.absorbing(
            num_classes, betas, mask_id=num_classes - 1, data_has_mask=True
        )
    if family == FEW:
        betas = d3.schedules.jsd(FEW_STEPS)
        return d3.transitions.absorbing(
            num_classes, betas, mask_id=num_classes - 1, data_has_mask=True
        )
    if family == MARGINAL:
        pi = 1 / torch.arange(1, num_classes + 1).double()
        return d3.transitions.marginal(num_classes, d3.schedules.cosine(NUM_STEPS), pi / pi.sum())
    if family == LONG:
        return d3.transitions.uniform(num_classes, d3.schedules.cosine(1000))
    if family == GAUSSIAN_FULL:
        return make_transition(GAUSSIAN, num_classes)
    if family in NEIGHBORS:
        points = torch.randn(num_classes, 8, generator=torch.Generator().manual_seed(0))
        steps = GAUSSIAN_STEPS
        middle = (torch.arange(steps) + 1).double() / (steps // 2 + 1)
        return d3.transitions.nearest_neighbor(points, 10, NEIGHBORS[family] * middle)
    return d3.transitions.discretized_gaussian(num_classes, d3.schedules.linear(GAUSSIAN_STEPS))


@lru_cache(maxsize=2)
def make_inputs(case: Case) -> Inputs:
    """Return random data, its corruption, and logits; see :func:`make_tokens`.

    The mask's logit is finite like any other.
    """
    generator = torch.Generator().manual_seed(0)
    tokens = make_tokens(case, generator)
    logits = torch.randn(*tokens[0].shape, case.num_classes, generator=generator)
    return Inputs(case, make_transition(case.family, case.num_classes), logits, *tokens)


def make_tokens(case: Case, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return x_0, x_t and t, which represents times uniform on 1..T.

    The times are the middles of B equal parts of 1..T (of 20..59 where a Gaussian is to have no
    cheaper form, of 2..T where few tokens are to change): so the share of masked tokens is that
    of uniform times on average, whatever the batch. In continuous time they are of [0, 1]. The
    mask is the last class and not in the data.
    """
    transition = make_transition(case.family, case.num_classes)
    x0 = torch.randint(case.num_classes - 1, (case.batch, case.positions), generator=generator)
    parts = {GAUSSIAN_FULL: (20, 60), FEW: (2, FEW_STEPS + 1)}
    t = (torch.arange(case.batch) + 0.5).double() / case.batch
    if transition.has_steps:
        first, last = parts.get(case.family, (1, transition.num_steps + 1))
        t = first + (t * (last - first)).long()
    return x0, d3.functional.q_sample(transition, x0, t, generator=generator), t


def prepare(
    operation: Operation, case: Case, names: list[str] | None = None
) -> dict[str, Run | None]:
    """Return the case's providers, or those of ``names``, ready to be called.

    None stands for one that cannot run.
    """
    inputs = make_inputs(case)
    return {
        name: provider.make(inputs)
        for name, provider in operation.providers.items()
        if names is None or name in names
    }


def as_pytest(operation: Operation) -> Callable[..., None]:
    """Return the operation as a parametrized test for pytest-benchmark."""
    import pytest

    @pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # torch.compile's own
    @pytest.mark.parametrize("provider", operation.providers)
    @pytest.mark.parametrize("case", operation.cases, ids=lambda case: case.name)
    def test(benchmark: Any, case: Case, provider: str) -> None:
        torch.compiler.reset()
        run = prepare(operation, case, [provider])[provider]
        if run is None:
            pytest.skip("this provider cannot run this case")
        benchmark.group = case.name
        benchmark.pedantic(run, rounds=7, warmup_rounds=2)

    return test
