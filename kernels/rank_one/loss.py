"""The loss of rank-one chains and its gradient: one read of the logits, one write of the gradient.

A row that fits is held by one program, many of them where classes are few; a longer one is read
three times, from the second time on out of the cache.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...chains.structures import RankOneStep
from ...records import Loss
from ...reductions import reduced
from ..common.launch import launch, triton_type
from ..common.math import exp, phi
from ..common.tile import (
    classes_from,
    load_tile,
    on_flat,
    on_tile,
    row_max,
    row_sum,
    store_tile,
    tile_of,
)
from .loss_row import Row, Token, finish, solve
from .step import (
    chain_of,
    load_class,
    load_step,
    never_stays,
    pi_at,
    pi_of,
    posterior_mean_tilt,
)


class Tokens(NamedTuple):
    """The tokens of a program: their classes, and what settles them before a row is read."""

    at: Any
    x0: Any
    x_t: Any
    inside: Any
    settled: Any
    value: Any  # of a settled token's loss and of all its gradient


class Line(NamedTuple):
    """For a class of the rest ``1 + g_j = ratio + slope e_j / pi_j``, ``g_j = shift + ...``.

    The slope has 1 / pi_j in it where all are 1/K.
    """

    ratio: Any
    shift: Any
    slope: Any


class LossCall(NamedTuple):
    """The tensors of all tokens."""

    logits: Any  # (N, K)
    x0: Any
    x_t: Any
    mask: Any  # None where every token counts
    loss: Any  # (N,) in the type of the calculation
    grad: Any  # (N, K); None where no gradient is wanted
    count: Any  # (1,), what divides the gradient; None for 1
    num_tokens: Any
    num_classes: Any
    is_density: Any  # 1 where steps have rates, and the loss is the bound's density; else 0


@triton.jit
def load_tokens(
    a, chain, vb_weight, ce_weight, POSTERIOR_MEAN: tl.constexpr, DIRECT: tl.constexpr,
    REAL: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Return the program's tokens, and what a row's mathematics needs of them.

    A settled row counts as one of logits -inf below a largest 0, and without a bound.
    """
    at = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = at < a.num_tokens
    step = load_step(chain, at, a.num_tokens, DIRECT, REAL)
    x0, x0_is_class = load_class(a.x0, at, a.num_tokens, a.num_classes)
    x_t, xt_is_class = load_class(a.x_t, at, a.num_tokens, a.num_classes)
    x0, x_t = x0.to(tl.int32), x_t.to(tl.int32)
    same = x0 == x_t
    x0_is_mask = x0 == chain.mask_id
    xt_is_mask = x_t == chain.mask_id

    mask_id = tl.full([1], chain.mask_id, tl.int32)
    pi_mask = pi_at(chain, mask_id, a.num_classes, REAL)
    pi_xt = pi_at(chain, x_t, a.num_classes, REAL)
    bar_mask = step.bar_base * pi_mask + step.bar_to_mask
    bar_x0 = tl.where(x0_is_mask, bar_mask, step.bar_base * pi_at(chain, x0, a.num_classes, REAL))
    bar_xt = tl.where(xt_is_mask, bar_mask, step.bar_base * pi_xt)
    spread = step.base * pi_xt + tl.where(xt_is_mask, step.to_mask, 0.0)
    is_density = tl.full([1], a.is_density, tl.int32) != 0
    spread_in_z = tl.where(is_density, 0.0, spread)
    tilt = tl.full([ROWS], 1.0, REAL)
    if POSTERIOR_MEAN:
        tilt = posterior_mean_tilt(step, spread_in_z, bar_xt)

    vb_weight = tl.full([ROWS], vb_weight, REAL)
    vb = tl.where((spread == 0.0) | step.predicts_x0, 0.0, vb_weight)
    ce = tl.full([ROWS], ce_weight, REAL) + tl.where(step.predicts_x0, vb_weight, 0.0)

    bad = (step.exists == 0) | (x0_is_class == 0) | (xt_is_class == 0)
    undefined = bad | ((spread_in_z == 0.0) & never_stays(step, same, bar_xt))
    settled = undefined | ((vb == 0.0) & (ce == 0.0))
    value = tl.where(undefined, float("nan"), 0.0).to(REAL)
    if a.mask is not None:
        counts = tl.load(a.mask + at, mask=inside, other=0) != 0
        settled |= counts == 0
        value = tl.where(counts, value, 0.0)
    vb = tl.where(settled, 0.0, vb)
    tokens = Tokens(at, x0, x_t, inside, settled, value)
    special = Token(
        step.keep,
        spread,
        spread_in_z,
        step.bar_keep,
        step.bar_base,
        bar_x0,
        bar_xt,
        tl.where(x0_is_mask | xt_is_mask, 0.0, bar_mask),
        same,
        tilt,
        vb,
        ce,
    )
    return tokens, special


@triton.jit
def is_class_of(a, j):
    """Return whether a tensor has a place for a class."""
    return (j >= 0) & (j < a.num_classes)


@triton.jit
def load_special(a, chain, tokens, REAL: tl.constexpr):
    """Return the logits of x_0, of x_t, and of the mask where it is neither."""
    rows = a.logits + tokens.at * a.num_classes
    reads = tokens.inside & (tokens.settled == 0)
    mask_id = tl.full([1], chain.mask_id, tl.int32)
    apart = (tokens.x0 != mask_id) & (tokens.x_t != mask_id) & is_class_of(a, mask_id)
    never = float("-inf")
    has_x0, has_xt = is_class_of(a, tokens.x0), is_class_of(a, tokens.x_t)
    logit_x0 = tl.load(rows + tokens.x0, mask=reads & has_x0, other=never).to(REAL)
    logit_xt = tl.load(rows + tokens.x_t, mask=reads & has_xt, other=never).to(REAL)
    logit_mask = tl.load(rows + mask_id, mask=reads & apart, other=never).to(REAL)
    return logit_x0, logit_xt, logit_mask


@triton.jit
def load_logits(a, tokens, classes, REAL: tl.constexpr):
    """Return the logits of some classes, -inf for what is not read."""
    reads = on_flat(tokens.settled == 0, classes.j.shape[0]) & classes.there
    return load_tile(a.logits, classes, reads, float("-inf")).to(REAL)


@triton.jit
def exponentials(a, chain, tokens, classes, logits, top):
    """Return exp(logit - top) of the rest, -1 for what is not of it."""
    j = classes.j
    apart = (j == on_tile(tokens.x0)) | (j == on_tile(tokens.x_t))
    apart |= (j == chain.mask_id) | (j >= a.num_classes)
    return tl.where(apart, -1.0, exp(logits - on_tile(top)))


@triton.jit
def row_of(top, e_rest, logit_x0, logit_xt, logit_mask):
    """Return what the mathematics of a token needs of its row."""
    e_x0, e_xt, e_mask = exp(logit_x0 - top), exp(logit_xt - top), exp(logit_mask - top)
    return Row(e_x0, e_xt, e_mask, e_rest, top - logit_x0)


@triton.jit
def line_of(chain, solved, num_classes, REAL: tl.constexpr):
    """Return the line of each token; h = 1 on that of one without curvature."""
    slope = solved.slope
    if chain.pi is None:
        slope *= num_classes.to(REAL)
    return Line(
        on_tile(tl.where(solved.curved, solved.ratio, 1.0)),
        on_tile(tl.where(solved.curved, solved.shift, 1.0)),
        on_tile(tl.where(solved.curved, slope, 0.0)),
    )


@triton.jit
def curve(chain, classes, e, line):
    """Return g and 1 + g of classes of the rest; 1 and 1 where pi = 0."""
    if chain.pi is None:
        return line.shift + line.slope * e, line.ratio + line.slope * e
    else:
        pi = pi_of(chain, classes)
        lift = line.slope * e / pi
        has = pi > 0.0
        return tl.where(has, line.shift + lift, 1.0), tl.where(has, line.ratio + lift, 1.0)


@triton.jit
def curvature(chain, classes, e, line, num_classes):
    """Return the sums of pi phi(g) and pi h over classes of the rest, of so many in all."""
    g, y = curve(chain, classes, e, line)
    h = g / y
    if chain.pi is None:
        count = num_classes.to(e.dtype)
        sum_phi = row_sum(tl.where(e < 0.0, 0.0, phi(g, y))) / count
        return sum_phi, row_sum(tl.where(e < 0.0, 0.0, h)) / count
    else:
        pi = pi_of(chain, classes)
        terms = tl.where(pi > 0.0, pi * phi(g, y), line.slope * e)
        sum_phi = row_sum(tl.where(e < 0.0, 0.0, terms))
        return sum_phi, row_sum(tl.where(e < 0.0, 0.0, pi * h))


@triton.jit
def store_gradient(a, tokens, classes, e, h, result, factor):
    """Write the gradient of the rest; what it writes to the special classes is to be replaced."""
    flat = tl.where(tokens.settled, tokens.value, result.flat * factor)
    gradient = e * (on_tile(result.steep * factor) * h + on_tile(flat))
    store_tile(a.grad, classes, gradient)


@triton.jit
def store_special(a, chain, tokens, result, factor):
    """Write the gradient of the special classes, once all threads have written the rest's."""
    tl.debug_barrier()
    writes = tokens.inside & (tokens.settled == 0)
    rows = a.grad + tokens.at * a.num_classes
    mask_id = tl.full([1], chain.mask_id, tl.int32)
    apart = (tokens.x0 != mask_id) & (tokens.x_t != mask_id) & is_class_of(a, mask_id)
    kind = a.grad.dtype.element_ty
    has_x0, has_xt = is_class_of(a, tokens.x0), is_class_of(a, tokens.x_t)
    other = writes & has_xt & (tokens.x_t != tokens.x0)
    tl.store(rows + tokens.x0, (result.grad_x0 * factor).to(kind), mask=writes & has_x0)
    tl.store(rows + tokens.x_t, (result.grad_xt * factor).to(kind), mask=other)
    tl.store(rows + mask_id, (result.grad_mask * factor).to(kind), mask=writes & apart)


@triton.jit
def gradient_factor(a, grad_scale, REAL: tl.constexpr):
    """Return what the gradient is multiplied by; that of no token is 0, whatever by."""
    factor = tl.full([1], grad_scale, REAL)
    if a.count is not None:
        factor = factor / tl.maximum(tl.load(a.count).to(REAL), 1.0)
    return factor


@triton.jit
def loss_of_whole_rows(
    a, chain, vb_weight: tl.float64, ce_weight: tl.float64, grad_scale: tl.float64,
    POSTERIOR_MEAN: tl.constexpr, DIRECT: tl.constexpr, REAL: tl.constexpr,
    ROWS: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """For rows that a tile holds whole."""
    tokens, token = load_tokens(a, chain, vb_weight, ce_weight, POSTERIOR_MEAN, DIRECT, REAL, ROWS)
    classes = classes_from(a, 0, ROWS, HIGH, LOW)
    logits = load_logits(a, tokens, classes, REAL)
    top = tl.where(tokens.settled, 0.0, row_max(logits))
    e = exponentials(a, chain, tokens, classes, logits, top)
    row = row_of(top, row_sum(tl.where(e < 0.0, 0.0, e)), *load_special(a, chain, tokens, REAL))
    solved = solve(token, row, REAL)
    line = line_of(chain, solved, a.num_classes, REAL)
    sum_phi, sum_h = tl.zeros([ROWS], REAL), tl.zeros([ROWS], REAL)
    if tl.max(solved.curved.to(tl.int32), axis=0) > 0:
        sum_phi, sum_h = curvature(chain, classes, e, line, a.num_classes)
    result = finish(token, row, solved, sum_phi, sum_h, REAL)
    store_loss(a, tokens, result)
    if a.grad is not None:
        factor = gradient_factor(a, grad_scale, REAL)
        # h anew: kept from above it takes too many registers.
        g, y = curve(chain, classes, e, line)
        store_gradient(a, tokens, classes, e, g / y, result, factor)
        store_special(a, chain, tokens, result, factor)


@triton.jit
def statistics_of_row(a, chain, tokens, REAL: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr):
    """Return the largest logit of a row, and the sum of the exponentials of the rest."""
    top = tl.full([1], float("-inf"), REAL)
    e_rest = tl.zeros([1], REAL)
    for start in range(0, a.num_classes, HIGH * LOW):
        classes = classes_from(a, start, 1, HIGH, LOW)
        logits = load_logits(a, tokens, classes, REAL)
        higher = tl.where(tokens.settled, 0.0, tl.maximum(top, row_max(logits)))
        e = exponentials(a, chain, tokens, classes, logits, higher)
        e = tl.where((e < 0.0) | (logits == float("-inf")), 0.0, e)
        e_rest = tl.where(top == higher, e_rest, e_rest * exp(top - higher)) + row_sum(e)
        top = higher
    return top, e_rest


@triton.jit
def sums_of_row(
    a, chain, tokens, line, top, num_classes,
    REAL: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """Return the sums of curvature over a row, of so many classes in all."""
    sum_phi, sum_h = tl.zeros([1], REAL), tl.zeros([1], REAL)
    for start in range(0, a.num_classes, HIGH * LOW):
        classes = classes_from(a, start, 1, HIGH, LOW)
        logits = load_logits(a, tokens, classes, REAL)
        e = exponentials(a, chain, tokens, classes, logits, top)
        more_phi, more_h = curvature(chain, classes, e, line, num_classes)
        sum_phi += more_phi
        sum_h += more_h
    return sum_phi, sum_h


@triton.jit
def gradient_of_row(
    a, chain, tokens, line, top, result, factor,
    REAL: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """Write the gradient of a row."""
    for start in range(0, a.num_classes, HIGH * LOW):
        classes = classes_from(a, start, 1, HIGH, LOW)
        logits = load_logits(a, tokens, classes, REAL)
        e = exponentials(a, chain, tokens, classes, logits, top)
        g, y = curve(chain, classes, e, line)
        store_gradient(a, tokens, classes, e, g / y, result, factor)
    store_special(a, chain, tokens, result, factor)


@triton.jit
def store_loss(a, tokens, result):
    """Write the loss of each token."""
    loss = tl.where(tokens.settled, tokens.value, result.loss)
    tl.store(a.loss + tokens.at, loss, mask=tokens.inside)


@triton.jit
def loss_of_long_rows(
    a, chain, vb_weight: tl.float64, ce_weight: tl.float64, grad_scale: tl.float64,
    POSTERIOR_MEAN: tl.constexpr, DIRECT: tl.constexpr, REAL: tl.constexpr,
    HIGH: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """A row a program, a tile of classes at a time."""
    tokens, token = load_tokens(a, chain, vb_weight, ce_weight, POSTERIOR_MEAN, DIRECT, REAL, 1)
    top, e_rest = statistics_of_row(a, chain, tokens, REAL, HIGH, LOW)
    row = row_of(top, e_rest, *load_special(a, chain, tokens, REAL))
    solved = solve(token, row, REAL)
    line = line_of(chain, solved, a.num_classes, REAL)
    sum_phi, sum_h = tl.zeros([1], REAL), tl.zeros([1], REAL)
    if tl.max(solved.curved.to(tl.int32), axis=0) > 0:
        sum_phi, sum_h = sums_of_row(a, chain, tokens, line, top, a.num_classes, REAL, HIGH, LOW)
    result = finish(token, row, solved, sum_phi, sum_h, REAL)
    store_loss(a, tokens, result)
    if a.grad is not None:
        factor = gradient_factor(a, grad_scale, REAL)
        gradient_of_row(a, chain, tokens, line, top, result, factor, REAL, HIGH, LOW)


def loss(of: Loss[RankOneStep], reduction: str) -> Tensor:
    """Return the loss, of each token or their sum or mean."""
    return _run(of, reduction, False, None)


def loss_and_grad(of: Loss[RankOneStep], reduction: str, late: bool) -> tuple[Tensor, Tensor]:
    """Return the loss and its gradient, which a mean leaves undivided where it is late."""
    grad = torch.empty_like(of.logits)
    return _run(of, reduction, late, grad), grad


def _run(of: Loss[RankOneStep], reduction: str, late: bool, grad: Tensor | None) -> Tensor:
    logits, x0, mask, x_t, step, model, weights, is_density = of
    real = torch.float64 if logits.dtype == torch.float64 else torch.float32
    num_tokens, num_classes = x0.numel(), logits.shape[-1]
    token_loss = torch.empty(x0.shape, dtype=real, device=logits.device)
    mean = reduction == "mean"
    count = mask.sum().to(real) if mask is not None and mean else None
    early = mean and not late
    arguments = LossCall(
        logits,
        x0,
        x_t,
        mask,
        token_loss,
        grad,
        count if early else None,
        num_tokens,
        num_classes,
        int(is_density),
    )
    scale = 1 / max(num_tokens, 1) if early and count is None else 1.0
    chain = chain_of(num_tokens, step, real)
    # Beside the logits, what the gradient needs of them.
    copies = 1 if chain.pi is None and grad is None else 2
    tile = tile_of(num_classes, logits.dtype, copies)
    if tile.num_classes < num_classes:
        kernel, shape = loss_of_long_rows, (tile.high, tile.low)
    else:
        kernel, shape = loss_of_whole_rows, (tile.rows, tile.high, tile.low)
    programs = triton.cdiv(num_tokens, tile.rows)
    launch(
        kernel, programs, logits, arguments, chain, *weights, scale, *model, triton_type(real),
        *shape, num_warps=tile.num_warps,
    )  # fmt: skip
    return reduced(token_loss, reduction, count)
