"""The loss of a head's logits: forward and backward of the mean over tokens, float32.

The gradients are those of hidden states ``(B, S, 512)`` and of the weight ``(K, 512)``.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import d3pm_fast as d3

from .cases import OURS, Case, Inputs, Operation, Provider, Run, as_pytest, cases
from .goals import LINEAR_FEATURES, LINEAR_SHAPE
from .providers import closed_form, compiled, loss_and_gradient

ALL_ROWS = "ours, all rows"
BARE = "three matmuls and our row kernel"
CASES = cases("linear", LINEAR_SHAPE)


class Head(NamedTuple):
    """The leaves."""

    hidden: Tensor
    weight: Tensor


@lru_cache(maxsize=1)
def head_of(case: Case) -> Head:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(case.batch, case.positions, LINEAR_FEATURES, generator=generator)
    weight = (
        torch.randn(case.num_classes, LINEAR_FEATURES, generator=generator) / LINEAR_FEATURES**0.5
    )
    return Head(hidden, weight)


def gradients(loss: Callable[..., Tensor], head: Head) -> tuple[Tensor, ...]:
    """Return the loss and its gradients, of fresh leaves that share memory with these."""
    leaves = [x.detach().requires_grad_() for x in head]
    value = loss(*leaves)
    value.backward()
    return value.detach(), *(leaf.grad for leaf in leaves)


def our_loss(i: Inputs, x_t: Tensor) -> Callable[[Any], Tensor]:
    return lambda prediction: d3.functional.loss(i.transition, prediction, i.x0, x_t, i.t)


def ours(i: Inputs) -> Run:
    loss, head = our_loss(i, i.x_t), head_of(i.case)
    return lambda: gradients(lambda *x: loss(d3.functional.Linear(*x)), head)


def ours_all_rows(i: Inputs) -> Run:
    """With all tokens masked, in chains that have a mask: then none is left out."""
    x_t = i.x_t if i.transition.mask_id < 0 else torch.full_like(i.x_t, i.transition.mask_id)
    loss, head = our_loss(i, x_t), head_of(i.case)
    return lambda: gradients(lambda *x: loss(d3.functional.Linear(*x)), head)


def bare(i: Inputs) -> Run:
    """The work that there is at least, on tensors that are there."""
    loss, (hidden, weight) = our_loss(i, i.x_t), head_of(i.case)
    rows, logits = hidden.flatten(0, 1), i.logits.flatten(0, 1)
    made = torch.empty_like(logits)

    def run() -> tuple[Tensor, ...]:
        torch.mm(rows, weight.T, out=made)
        value, grad = loss_and_gradient(loss, i.logits)
        grad = grad.flatten(0, 1)
        return value, grad @ weight, grad.T @ rows

    return run


def plain(i: Inputs) -> Run:
    loss, head = our_loss(i, i.x_t), head_of(i.case)
    return lambda: gradients(lambda *x: loss(F.linear(*x)), head)


def closed(i: Inputs, wrap: Callable[..., Any] = lambda loss: loss) -> Run:
    form, head = closed_form(i.transition), head_of(i.case)
    loss = wrap(lambda *x: form.loss(F.linear(*x), i.x0, i.x_t, i.t))
    return lambda: gradients(loss, head)


def closed_compiled(i: Inputs) -> Run:
    return closed(i, compiled)


def bytes_moved(i: Inputs) -> int:
    """Read hidden and weight, and write their gradients."""
    return 2 * sum(x.nbytes for x in head_of(i.case))


def distance(ours: tuple[Tensor, ...], other: tuple[Tensor, ...], i: Inputs) -> float:
    """Return the largest relative difference, of the losses or of the gradients (2-norm)."""
    pairs = zip(ours, other, strict=True)
    return max(float(torch.dist(a.flatten(), b.flatten()) / a.norm()) for a, b in pairs)


LINEAR_LOSS = Operation(
    "linear",
    CASES,
    {
        OURS: Provider(ours),
        BARE: Provider(bare),
        ALL_ROWS: Provider(ours_all_rows),
        "plain logits, our loss": Provider(plain, tolerance=1e-3),
        "plain logits, closed form eager": Provider(closed),
        "plain logits, closed form compiled": Provider(closed_compiled),
    },
    bytes_moved,
    distance,
)
test_linear_loss = as_pytest(LINEAR_LOSS)
