"""The tokens of a rank-one loss: what settles them before their row is read, their own classes.

Of a row they read and write x_0, x_t and the mask; ``loss_rest.py`` has the other classes.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .loss_row import Token
from .step import load_class, load_step, never_stays, pi_at, pi_of_tokens, posterior_mean_tilt


class LossCall(NamedTuple):
    """The tensors of all tokens."""

    logits: Any  # (N, num_classes)
    x0: Any
    x_t: Any
    mask: Any  # None where every token counts
    factors: Any  # (N,) in the type of the calculation; None for 1
    loss: Any  # (N,) in the type of the calculation, or (N, 3) with terms
    grad: Any  # (N, num_classes); None where no gradient is wanted
    count: Any  # (1,), what divides the gradient; None for 1
    num_tokens: Any
    num_classes: Any  # of a row of logits
    is_density: Any  # 1 where steps have rates, and the loss is the bound's density; else 0
    WITH_TERMS: Any
    HAS_MASK: Any  # whether the chain has a mask
    SPARSE: Any  # whether many tokens may be settled
    IS_STAGED: Any = tl.constexpr(False)  # whether rows are read by way of shared memory
    IS_IN_PLACE: Any = tl.constexpr(False)  # whether grad is logits


class Tokens(NamedTuple):
    """The tokens of a program: their classes, and what settles them before a row is read."""

    at: Any
    x0: Any
    x_t: Any
    inside: Any
    settled: Any
    value: Any  # of a settled token's loss and of all its gradient
    read: Any  # the program's first row that is not filled alike; beyond them if there is none


@triton.jit
def load_tokens(
    a, chain, vb_weight, ce_weight, model, REAL: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    """Return the program's tokens, and what a row's mathematics needs of them.

    A settled row counts as one of logits -inf below a largest 0, and without a bound.
    """
    at = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = at < a.num_tokens
    step = load_step(chain, at, a.num_tokens, model.direct, REAL)
    x0, x0_is_class = load_class(a.x0, at, a.num_tokens, chain.num_classes)
    x_t, xt_is_class = load_class(a.x_t, at, a.num_tokens, chain.num_classes)
    x0, x_t = x0.to(tl.int32), x_t.to(tl.int32)
    same = x0 == x_t
    x0_is_mask = x0 == chain.mask_id
    xt_is_mask = x_t == chain.mask_id

    mask_id = tl.full([1], chain.mask_id, tl.int32)
    pi_mask = pi_at(chain, mask_id, REAL)
    pi_xt = pi_of_tokens(chain, x_t, REAL)
    bar_mask = step.bar_base * pi_mask + step.bar_to_mask
    bar_x0 = tl.where(x0_is_mask, bar_mask, step.bar_base * pi_of_tokens(chain, x0, REAL))
    bar_xt = tl.where(xt_is_mask, bar_mask, step.bar_base * pi_xt)
    spread = step.base * pi_xt + tl.where(xt_is_mask, step.to_mask, 0.0)
    is_density = tl.full([1], a.is_density, tl.int32) != 0
    spread_in_z = tl.where(is_density, 0.0, spread)
    tilt = tl.full([ROWS], 1.0, REAL)
    if model.posterior_mean:
        tilt = posterior_mean_tilt(step, spread_in_z, bar_xt)

    weight = tl.full([ROWS], 1.0, REAL)
    if a.factors is not None:
        weight = tl.load(a.factors + at, mask=inside, other=0.0)
    vb_weight = tl.full([ROWS], vb_weight, REAL)
    has_step = (spread != 0.0) & (step.predicts_x0 == 0)
    vb = tl.where(has_step, vb_weight * weight, 0.0)
    ce = tl.full([ROWS], ce_weight, REAL) + tl.where(step.predicts_x0, vb_weight, 0.0)
    ce *= weight
    diverges = vb != 0.0
    if a.WITH_TERMS:
        diverges = has_step

    bad = (step.exists == 0) | (x0_is_class == 0) | (xt_is_class == 0) | (x0 == chain.forbidden)
    undefined = bad | ((spread_in_z == 0.0) & never_stays(step, same, bar_xt))
    settled = undefined
    if not a.WITH_TERMS:
        settled |= (vb == 0.0) & (ce == 0.0)
    counts = inside & (weight != 0.0)
    if a.mask is not None:
        counts &= tl.load(a.mask + at, mask=inside, other=0) != 0
    settled |= counts == 0
    undefined &= counts
    value = tl.where(undefined, float("nan"), 0.0).to(REAL)
    vb = tl.where(settled, 0.0, vb)
    diverges = diverges & (settled == 0)
    alike = settled
    if ROWS > 1:
        alike &= undefined == 0
    read = tl.min(tl.where(alike, ROWS, tl.arange(0, ROWS)), axis=0)
    tokens = Tokens(at, x0, x_t, inside, settled, value, read)
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
        diverges,
        step.predicts_x0,
        weight,
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
    logit_mask = tl.full([tokens.x0.shape[0]], never, REAL)
    if a.HAS_MASK:
        logit_mask = tl.load(rows + mask_id, mask=reads & apart, other=never).to(REAL)
        logit_mask = tl.where(mask_id == chain.forbidden, never, logit_mask)
        logit_xt = tl.where(tokens.x_t == chain.forbidden, never, logit_xt)
    return logit_x0, logit_xt, logit_mask


@triton.jit
def count_special(a, chain, tokens):
    """Return how many of a row's logits are those of x_0, of x_t and of the mask."""
    mask_id = tl.full([1], chain.mask_id, tl.int32)
    has_xt = is_class_of(a, tokens.x_t) & (tokens.x_t != tokens.x0)
    has_mask = is_class_of(a, mask_id) & (mask_id != tokens.x0) & (mask_id != tokens.x_t)
    of_x0 = is_class_of(a, tokens.x0).to(tl.int32)
    return of_x0 + has_xt.to(tl.int32) + has_mask.to(tl.int32)


@triton.jit
def pi_of_special(chain, tokens, REAL: tl.constexpr):
    """Return the sum of pi of x_0, of x_t and of the mask, each class once."""
    mask_id = tl.full([1], chain.mask_id, tl.int32)
    pi_xt = tl.where(tokens.x_t == tokens.x0, 0.0, pi_at(chain, tokens.x_t, REAL))
    apart = (mask_id != tokens.x0) & (mask_id != tokens.x_t)
    pi_mask = tl.where(apart, pi_at(chain, mask_id, REAL), 0.0)
    return pi_at(chain, tokens.x0, REAL) + pi_xt + pi_mask


@triton.jit
def store_special(a, chain, tokens, result, factor):
    """Write the gradient of the special classes, once all threads have written the rest's.

    One may be another, the last of these. What is written depends on the step, but not where: the
    layout in which it is written would else have all loads of a step once more.
    """
    tl.debug_barrier()
    mask_id = tl.full([1], chain.mask_id, tl.int32)
    if a.HAS_MASK:
        store_at(a, tokens, mask_id, result.grad_mask * factor)
    store_at(a, tokens, tokens.x_t, result.grad_xt * factor)
    store_at(a, tokens, tokens.x0, result.grad_x0 * factor)


@triton.jit
def store_at(a, tokens, j, gradient):
    """Write the gradient of a class of each row, if it is there."""
    gradient = tl.where(tokens.settled, tokens.value, gradient).to(a.grad.dtype.element_ty)
    writes = tokens.inside & is_class_of(a, j)
    tl.store(a.grad + tokens.at * a.num_classes + j, gradient, mask=writes)


@triton.jit
def store_loss(a, tokens, token, solved, result):
    """Write the loss of each token, and its terms."""
    loss = tl.where(tokens.settled, tokens.value, result.loss)
    if a.WITH_TERMS:
        of_step = tl.where(token.diverges, result.divergence, 0.0)
        bound = token.weight * tl.where(token.is_direct, solved.cross_entropy, of_step)
        cross_entropy = token.weight * solved.cross_entropy
        to = a.loss + tokens.at * 3
        tl.store(to, loss, mask=tokens.inside)
        tl.store(to + 1, tl.where(tokens.settled, tokens.value, bound), mask=tokens.inside)
        tl.store(to + 2, tl.where(tokens.settled, tokens.value, cross_entropy), mask=tokens.inside)
    else:
        tl.store(a.loss + tokens.at, loss, mask=tokens.inside)


@triton.jit
def store_value(a, tokens):
    """Write the loss of tokens that are all settled, and its terms."""
    if a.WITH_TERMS:
        for term in tl.static_range(3):
            tl.store(a.loss + tokens.at * 3 + term, tokens.value, mask=tokens.inside)
    else:
        tl.store(a.loss + tokens.at, tokens.value, mask=tokens.inside)


@triton.jit
def gradient_factor(a, grad_scale, REAL: tl.constexpr):
    """Return what the gradient is multiplied by; that of no token is 0, whatever by."""
    factor = tl.full([1], grad_scale, REAL)
    if a.count is not None:
        factor = factor / tl.maximum(tl.load(a.count).to(REAL), 1.0)
    return factor
