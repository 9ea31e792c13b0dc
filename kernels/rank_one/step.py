"""One step of a rank-one chain, as the kernels see it; ``csrc/rank_one.h`` has the notation."""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from ...chains.structures import RankOneStep
from ..common.math import log_of_double, reciprocal
from ..common.runs import run_of, runs_of
from ..common.tile import load_classes


class Chain(NamedTuple):
    """The rows of a table of steps that runs of tokens have, and the chain's vector."""

    rows: Any  # of each run
    runs: Any
    table: Any  # (table_size, 7) float64, see RankOneTransition.step_coefficients
    table_size: Any
    pi: Any  # (K,) in the type of the calculation; None where all are 1/K
    mask_id: Any  # -1 where there is none
    num_classes: Any
    forbidden: Any  # the class whose logits count as -inf; -1 where there is none


class Coefficients(NamedTuple):
    """A row of the table of steps, of each token, in float64."""

    keep: Any
    base: Any
    to_mask: Any
    bar_keep: Any
    bar_base: Any
    bar_to_mask: Any
    target_time: Any
    exists: Any


class Step(NamedTuple):
    """``Q = keep I + 1 (base pi + to_mask e)^T`` and ``Qbar``, of each token."""

    keep: Any
    base: Any
    to_mask: Any
    bar_keep: Any
    bar_base: Any
    bar_to_mask: Any
    predicts_x0: Any  # whether p(x_s | x_t) is s itself
    exists: Any
    keeps: Any  # whether keep is above 0, also below the range of its type
    lasts: Any  # and so for keep times bar_keep
    log_bar_keep: Any  # also below the range


def chain_of(num_tokens: int, step: RankOneStep, dtype: torch.dtype) -> Chain:
    """Return what a kernel takes for a step's record, pi in a dtype."""
    rows, table, pi = step.rows, step.table, step.pi
    pi = None if pi is None else pi.to(dtype)
    runs = runs_of(num_tokens, rows.numel())
    return Chain(rows, runs, table, len(table), pi, step.mask_id, step.num_classes, step.forbidden)


@triton.jit
def load_coefficients(chain, tokens, num_tokens):
    """Return the coefficients of tokens' steps; those beyond the last one have none."""
    row = tl.load(chain.rows + run_of(tokens, chain.runs), mask=tokens < num_tokens, other=-1)
    inside = row.to(tl.uint64) < chain.table_size
    at = chain.table + tl.where(inside, row, 0) * 7
    keep = tl.load(at, mask=inside, other=float("nan"))
    exists = keep == keep
    return Coefficients(
        keep,
        tl.load(at + 1, mask=exists, other=0.0),
        tl.load(at + 2, mask=exists, other=0.0),
        tl.load(at + 3, mask=exists, other=0.0),
        tl.load(at + 4, mask=exists, other=0.0),
        tl.load(at + 5, mask=exists, other=0.0),
        tl.load(at + 6, mask=exists, other=1.0),
        exists,
    )


@triton.jit
def load_step(chain, tokens, num_tokens, DIRECT: tl.constexpr, REAL: tl.constexpr):
    """Return the steps of tokens, in the type of the calculation."""
    c = load_coefficients(chain, tokens, num_tokens)
    return Step(
        c.keep.to(REAL),
        c.base.to(REAL),
        c.to_mask.to(REAL),
        at_least_normal(c.bar_keep, REAL),
        c.bar_base.to(REAL),
        c.bar_to_mask.to(REAL),
        (c.target_time == 0.0) & DIRECT,
        c.exists,
        c.keep > 0.0,
        c.keep * c.bar_keep > 0.0,
        log_of_double(c.bar_keep, REAL),
    )


@triton.jit
def at_least_normal(bar_keep, REAL: tl.constexpr):
    """Return Abar as ``csrc/rank_one.h`` has it in the loss."""
    powers: tl.constexpr = 9.33263618503218879e-302 if REAL == tl.float64 else 7.52316384526264e-37
    least = tl.full([1], powers, tl.float64)
    return tl.where((bar_keep > 0.0) & (bar_keep < least), least, bar_keep).to(REAL)


@triton.jit
def never_stays(step, same, bar_xt):
    """Return whether x_0 cannot lead to x_t, where no other class than x_t leads to x_t."""
    from_elsewhere = step.keeps & (bar_xt > 0.0)
    return (from_elsewhere | (same & step.lasts)) == 0


@triton.jit
def load_class(tokens_at, tokens, num_tokens, num_classes):
    """Return each token's class and whether it is one; 0 where it is not."""
    value = tl.load(tokens_at + tokens, mask=tokens < num_tokens, other=-1)
    is_class = value.to(tl.uint64) < num_classes
    return tl.where(is_class, value, 0), is_class


@triton.jit
def one_of_all(chain, REAL: tl.constexpr):
    """Return 1/K."""
    return reciprocal(tl.full([1], chain.num_classes, REAL))


@triton.jit
def pi_at(chain, classes, REAL: tl.constexpr):
    """Return pi of classes; 0 where it is none."""
    inside = (classes >= 0) & (classes < chain.num_classes)
    if chain.pi is None:
        return tl.where(inside, one_of_all(chain, REAL), 0.0)
    else:
        return tl.load(chain.pi + classes, mask=inside, other=0.0)


@triton.jit
def pi_of_tokens(chain, classes, REAL: tl.constexpr):
    """Return pi of numbers that are classes."""
    if chain.pi is None:
        return tl.broadcast_to(one_of_all(chain, REAL), classes.shape)
    else:
        return tl.load(chain.pi + classes)


@triton.jit
def pi_of(chain, classes, FILLED: tl.constexpr = False):
    """Return pi of a tile's classes, for a chain that has one; 0 where there are none.

    FILLED says that there are all.
    """
    if classes.j.shape[2] == 1:  # a row is a thread's, and so are all pi
        pi = tl.load(chain.pi + classes.high, mask=classes.high < chain.num_classes, other=0.0)
        return tl.broadcast_to(pi, classes.j.shape)
    else:
        return load_classes(chain.pi, classes, FILLED)


@triton.jit
def spread_at(chain, base, to_mask, x, REAL: tl.constexpr):
    """Return ``base pi_j + to_mask [j = mask]`` of a class of each token."""
    return base * pi_at(chain, x, REAL) + tl.where(x == chain.mask_id, to_mask, 0.0)


@triton.jit
def posterior_mean_tilt(step, u, bar_xt):
    """Return the tilt of s[x_t]; 1 where no other class than x_t can lead to x_t."""
    other = step.keep * bar_xt + u
    tilt = other / (step.keep * step.bar_keep + other)
    return tl.where((other > 0.0) & (step.predicts_x0 == 0), tilt, 1.0)
