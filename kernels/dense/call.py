"""What the kernels of chains of matrices are given."""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...reference.logspace import compute_dtype


class DenseCall(NamedTuple):
    """The tensors of all tokens; None where an operation has no use for one."""

    logits: Any  # (N, K)
    anchor: Any  # x_0, or x_t where there is none
    x_t: Any
    mask: Any  # None where every token counts
    upstream: Any  # (N, K), of the gradient of log-probabilities
    loss: Any  # (N,) in the type of the calculation
    out: Any  # (N, K); None where nothing of that size is wanted
    inexact: Any  # int8 (N,), whether a row is to be recomputed; None: all are
    num_tokens: Any
    num_classes: Any


class Weights(NamedTuple):
    """Of the bound's term, of the cross-entropy, and of the gradient over ``count``."""

    vb: Any
    ce: Any
    grad: Any
    count: Any  # (1,) or None for 1


class StepWeights(NamedTuple):
    """The weights of one step."""

    vb: Any
    ce: Any
    grad: Any


@triton.jit
def is_direct(steps, step, DIRECT: tl.constexpr):
    """Return whether p of a step is s itself."""
    return DIRECT & (tl.load(steps.s + step) == 0)


@triton.jit
def weights_of(steps, step, weights, DIRECT: tl.constexpr, REAL: tl.constexpr):
    """Return the weights of a step; one whose p is s itself has the cross-entropy alone."""
    vb, ce = tl.full([1], weights.vb, REAL), tl.full([1], weights.ce, REAL)
    direct = is_direct(steps, step, DIRECT)
    ce = tl.where(direct, ce + vb, ce)
    vb = tl.where(direct, 0.0, vb)
    grad = tl.full([1], weights.grad, REAL)
    if weights.count is not None:
        grad = grad / tl.load(weights.count).to(REAL)
    return StepWeights(vb, ce, grad)


@triton.jit
def has_bound(w):
    """Return whether the bound's term counts for any token of a program."""
    return tl.max((w.vb != 0.0).to(tl.int32), axis=0) > 0


@triton.jit
def cross_entropy_term(w, cross_entropy):
    """Return the cross-entropy's part of the loss; 0 where it does not count, also of inf."""
    return tl.where(w.ce != 0.0, w.ce * cross_entropy, 0.0)


def of_prediction(
    logits: Tensor, x_t: Tensor, upstream: Tensor | None, out: Tensor | None
) -> DenseCall:
    """Return the arguments of what is made of p alone; no row of float64 is done twice."""
    in_float32 = compute_dtype(logits.dtype) == torch.float32
    inexact = torch.empty(x_t.shape, dtype=torch.int8, device=x_t.device) if in_float32 else None
    size = x_t.numel(), logits.shape[-1]
    return DenseCall(logits, x_t, x_t, None, upstream, None, out, inexact, *size)
