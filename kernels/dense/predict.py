"""What a tile's logits say of x_0, carried to s by ``Qbar_s``: ``f = softmax(logits) Qbar_s``."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ..common.math import exp, log1p
from .entries import log_of


class Softmax(NamedTuple):
    """``s = exp(logit - top) per_sum`` of each row."""

    top: Any
    per_sum: Any
    anchor: Any  # s of the anchor
    others: Any  # s of all others, summed without it
    cross_entropy: Any  # -log s of the anchor


@triton.jit
def load_logits(a, steps, rows, classes, TILTED: tl.constexpr):
    """Return the logits of classes ``[1, C]``; tilted, by what leads to x_t, in float64.

    NaN and inf of any class stay.
    """
    reads = rows.reads & (classes < a.num_classes)
    at = a.logits + rows.at[:, None] * a.num_classes + classes
    logits = tl.load(at, mask=reads, other=float("-inf")).to(tl.float32)
    if TILTED:
        reach = tl.load(reach_at(a, steps, rows, classes), mask=reads, other=1.0)
        stays = (reach != 0.0) | ((logits < float("inf")) == 0)
        return tl.where(stays, logits.to(tl.float64) - log_of(reach), float("-inf"))
    else:
        return logits


@triton.jit
def reach_at(a, steps, rows, classes):
    """Return where ``Qbar_t[classes, x_t]`` is."""
    matrix = steps.q_bar_t + rows.step.to(tl.int64) * a.num_classes * a.num_classes
    return (matrix + rows.x_t[:, None]) + classes * a.num_classes


@triton.jit
def reach_of_anchor(a, steps, rows):
    """Return ``Qbar_t[anchor, x_t]`` of each row, 0 for one that is not wanted."""
    matrix = steps.q_bar_t + rows.step.to(tl.int64) * a.num_classes * a.num_classes
    return tl.load(matrix + rows.anchor * a.num_classes + rows.x_t, mask=rows.live, other=0.0)


@triton.jit
def top_of(a, steps, rows, TILTED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Return the largest logit of each row; 0 of one that is not wanted."""
    top = tl.full([ROWS], float("-inf"), tl.float64 if TILTED else tl.float32)
    for start in range(0, a.num_classes, BLOCK):
        classes = start + tl.arange(0, BLOCK)[None, :]
        top = tl.maximum(top, tl.max(load_logits(a, steps, rows, classes, TILTED), axis=1))
    return tl.where(rows.live, top, 0.0)


@triton.jit
def powers_of(a, steps, rows, top, classes, TILTED: tl.constexpr):
    """Return ``exp(logit - top)`` of classes, and what of it is not the anchor's, summed."""
    logits = load_logits(a, steps, rows, classes, TILTED)
    e = exp((logits - top[:, None]).to(tl.float32))
    return e, tl.sum(tl.where(classes == rows.anchor[:, None], 0.0, e), axis=1)


@triton.jit
def softmax_from(a, steps, rows, top, others, TILTED: tl.constexpr):
    """Return the softmax from the sum of all powers but the anchor's."""
    own = tl.sum(load_logits(a, steps, rows, rows.anchor[:, None], TILTED), axis=1)
    below = (top - own).to(tl.float32)
    anchor = exp(-below)
    sum = others + anchor
    # sum >= 1; where the anchor has the largest logit, sum - 1 is `others` to the last digit.
    cross_entropy = below + log1p(tl.where(below == 0.0, others, sum - 1.0))
    per_sum = 1.0 / tl.where(rows.live, sum, 1.0)
    return Softmax(top, per_sum, anchor * per_sum, others * per_sum, cross_entropy)


@triton.jit
def softmax_of(a, steps, rows, TILTED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Return what is known of each row's softmax; a row that is not wanted counts as flat."""
    top = top_of(a, steps, rows, TILTED, ROWS, BLOCK)
    others = tl.zeros([ROWS], tl.float32)
    for start in range(0, a.num_classes, BLOCK):
        classes = start + tl.arange(0, BLOCK)[None, :]
        _, more = powers_of(a, steps, rows, top, classes, TILTED)
        others += more
    return softmax_from(a, steps, rows, top, others, TILTED)


@triton.jit
def probabilities(a, steps, rows, softmax, classes, TILTED: tl.constexpr):
    """Return s of classes."""
    logits = load_logits(a, steps, rows, classes, TILTED)
    return exp((logits - softmax.top[:, None]).to(tl.float32)) * softmax.per_sum[:, None]


@triton.jit
def load_common(a, steps, rows, classes):
    """Return what the rows of ``Qbar_s`` have in common, in float64."""
    at = steps.common + rows.step.to(tl.int64) * a.num_classes + classes
    return tl.load(at, mask=classes < a.num_classes, other=0.0)


@triton.jit
def is_centred(a, steps, rows):
    """Return whether the rows of ``Qbar_s`` have anything in common."""
    return load_common(a, steps, rows, 0) > 0.0


@triton.jit
def value_at_anchor(a, steps, rows, others):
    """Return what a loss takes for the anchor's s in ``v Qbar_s``, by what all others have of s.

    v is s without the anchor, or, where the rows of Qbar_s have something in common,
    ``s - e_anchor``.
    """
    return tl.where(is_centred(a, steps, rows), -others, 0.0)


@triton.jit
def load_column(a, steps, rows, j):
    """Return the entries ``Q_{s->t}[j, x_t]``."""
    reads = rows.reads & (j < a.num_classes)
    matrix = steps.q + rows.step.to(tl.int64) * a.num_classes * a.num_classes
    return tl.load(matrix + rows.x_t[:, None] * a.num_classes + j, mask=reads, other=0.0)


@triton.jit
def load_truth(a, steps, rows, j):
    """Return the entries ``Qbar_s[anchor, j]``."""
    reads = rows.reads & (j < a.num_classes)
    matrix = steps.q_bar + rows.step.to(tl.int64) * a.num_classes * a.num_classes
    return tl.load(matrix + rows.anchor[:, None] * a.num_classes + j, mask=reads, other=0.0)
