"""The loss and its gradient: forward and backward of the mean over tokens, float32."""

import torch
import torch.nn.functional as F
from torch import Tensor

import d3pm_fast as d3

from .cases import OURS, Inputs, Operation, Provider, Run, as_pytest, cases
from .host_chains import MASKED_UNIFORM
from .providers import (
    closed_form,
    compiled,
    copy,
    dense,
    has_closed_form,
    loss_and_gradient,
)

CASES = cases("loss", (8, 1024, 256), (32, 256, 27), (1, 512, 8192))
CASES += cases("loss", (2, 256, 1025), (2, 256, 2888), families=[MASKED_UNIFORM])  # VQ-Diffusion's


def ours(i: Inputs) -> Run:
    def loss(logits: Tensor) -> Tensor:
        tokens = i.x0, i.x_t, i.t
        return d3.functional.loss(i.transition, logits, *tokens, first_step="logits")

    return lambda: loss_and_gradient(loss, i.logits)


def dense_eager(i: Inputs) -> Run | None:
    tables = dense(i.transition)
    if tables is None:
        return None
    return lambda: loss_and_gradient(lambda x: tables.loss(x, i.x0, i.x_t, i.t), i.logits)


def dense_compiled(i: Inputs) -> Run | None:
    tables = dense(i.transition)
    if tables is None:
        return None
    loss = compiled(tables.loss)
    return lambda: loss_and_gradient(lambda x: loss(x, i.x0, i.x_t, i.t), i.logits)


def closed_eager(i: Inputs) -> Run | None:
    if not has_closed_form(i.transition):
        return None
    loss = closed_form(i.transition).loss
    return lambda: loss_and_gradient(lambda x: loss(x, i.x0, i.x_t, i.t), i.logits)


def closed_compiled(i: Inputs) -> Run | None:
    if not has_closed_form(i.transition):
        return None
    loss = compiled(closed_form(i.transition).loss)
    return lambda: loss_and_gradient(lambda x: loss(x, i.x0, i.x_t, i.t), i.logits)


def cross_entropy(i: Inputs) -> Run:
    def loss(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1), i.x0.flatten())

    return lambda: loss_and_gradient(loss, i.logits)


def bytes_moved(i: Inputs) -> int:
    """Read the logits, of masked tokens only where there is a mask, and write the gradient."""
    needed = (i.x_t == i.transition.mask_id) | (i.t[:, None] == 1)
    read = int(needed.sum()) if i.case.family == "absorbing" else i.case.num_tokens
    return (read + i.case.num_tokens) * i.case.num_classes * i.logits.itemsize


def distance(ours: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], i: Inputs) -> float:
    """Return the larger relative difference, of the losses or of the gradients (2-norm)."""
    pairs = zip(ours, other, strict=True)
    return max(float(torch.dist(a, b) / a.norm()) for a, b in pairs)


LOSS = Operation(
    "loss",
    CASES,
    {
        OURS: Provider(ours),
        "dense eager": Provider(dense_eager, tolerance=0.25),
        "closed form eager": Provider(closed_eager, tolerance=1e-3),
        "closed form compiled": Provider(closed_compiled, tolerance=1e-3),
        "cross_entropy": Provider(cross_entropy),
        "copy": Provider(lambda i: copy(bytes_moved(i))),
    },
    bytes_moved,
    distance,
)
test_loss = as_pytest(LOSS)
