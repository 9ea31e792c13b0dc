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
    factors: Any = None  # (N,) in the type of the calculation, of losses; None for 1
    WITH_TERMS: Any = tl.constexpr(False)  # whether losses are (N, 3), with their terms
    IS_DENSITY: Any = tl.constexpr(False)  # whether c are rates, and the bound's term its density


class Weights(NamedTuple):
    """Of the bound's term, of the cross-entropy, and of the gradient over ``count``."""

    vb: Any
    ce: Any
    grad: Any
    count: Any  # (1,) or None for 1


class StepWeights(NamedTuple):
    """The weights of tokens of one step; the factor is in those of the terms."""

    vb: Any
    ce: Any
    grad: Any
    factor: Any
    diverges: Any  # whether the divergence is wanted
    direct: Any  # whether the bound's term is the cross-entropy


@triton.jit
def is_direct(steps, step, DIRECT: tl.constexpr):
    """Return whether p of a step is s itself."""
    return DIRECT & (tl.load(steps.s + step) == 0)


@triton.jit
def factor_of(a, at, inside, REAL: tl.constexpr):
    """Return the factors of tokens' losses."""
    if a.factors is None:
        return tl.full([1], 1.0, REAL)
    else:
        return tl.load(a.factors + at, mask=inside, other=0.0).to(REAL)


@triton.jit
def weights_of(a, steps, step, at, inside, weights, DIRECT: tl.constexpr, REAL: tl.constexpr):
    """Return the weights of a step; one whose p is s itself has the cross-entropy alone."""
    vb, ce = tl.full([1], weights.vb, REAL), tl.full([1], weights.ce, REAL)
    direct = is_direct(steps, step, DIRECT)
    factor = factor_of(a, at, inside, REAL)
    ce = factor * tl.where(direct, ce + vb, ce)
    vb = factor * tl.where(direct, 0.0, vb)
    diverges = vb != 0.0
    if a.WITH_TERMS:
        diverges = tl.where(direct, 0, factor != 0.0) != 0
    grad = tl.full([1], weights.grad, REAL)
    if weights.count is not None:
        grad = grad / tl.load(weights.count).to(REAL)
    return StepWeights(vb, ce, grad, factor, diverges, direct)


@triton.jit
def has_bound(w):
    """Return whether the divergence is wanted of any token of a program."""
    return tl.max(w.diverges.to(tl.int32), axis=0) > 0


@triton.jit
def weighted(weight, term):
    """Return a term's part of the loss; 0 where it does not count, also of inf."""
    return tl.where(weight != 0.0, weight * term, 0.0)


@triton.jit
def store_results(a, at, inside, w, cross_entropy, divergence, live, other):
    """Write the losses of tokens, and their terms; another number for those that have none.

    Return the losses.
    """
    kind = a.loss.dtype.element_ty
    loss = weighted(w.ce, cross_entropy) + weighted(w.vb, divergence)
    loss = tl.where(live, loss, other)
    if a.WITH_TERMS:
        bound = weighted(w.factor, tl.where(w.direct, cross_entropy, divergence))
        entropy = weighted(w.factor, cross_entropy)
        tl.store(a.loss + at * 3, loss.to(kind), mask=inside)
        tl.store(a.loss + at * 3 + 1, tl.where(live, bound, other).to(kind), mask=inside)
        tl.store(a.loss + at * 3 + 2, tl.where(live, entropy, other).to(kind), mask=inside)
    else:
        tl.store(a.loss + at, loss.to(kind), mask=inside)
    return loss


def of_prediction(
    logits: Tensor, x_t: Tensor, upstream: Tensor | None, out: Tensor | None
) -> DenseCall:
    """Return the arguments of what is made of p alone; no row of float64 is done twice."""
    in_float32 = compute_dtype(logits.dtype) == torch.float32
    inexact = torch.empty(x_t.shape, dtype=torch.int8, device=x_t.device) if in_float32 else None
    size = x_t.numel(), logits.shape[-1]
    return DenseCall(logits, x_t, x_t, None, upstream, None, out, inexact, *size)
