"""The loss of rank-one chains by log scores, and its gradient.

``csrc/score_row.h`` has the notation. A row is read once and its gradient written once: no class
needs to know of another.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from ...chains.structures import RankOneStep
from ...records import Loss
from ...reference.score_loss import levels_of
from ..common.launch import constant, launch, triton_type
from ..common.math import powers
from ..common.tile import (
    classes_from,
    load_classes,
    load_tile,
    on_flat,
    on_tile,
    row_sum,
    store_tile,
    tile_of,
)
from .loss import prepared
from .loss_tokens import gradient_factor, load_tokens
from .step import chain_of, load_coefficients, pi_of, spread_at


class Ratio(NamedTuple):
    """r of a class of each token, and log r in two parts, the first a multiple of 2^-16."""

    ratio: Any
    high: Any
    low: Any


@triton.jit
def ratio_of(r, REAL: tl.constexpr):
    """Return the parts of a float64 ratio."""
    ratio = r.to(REAL)
    has = ratio > 0.0
    log_r = tl.log(tl.where(has, r, 1.0))
    to_nearest: tl.constexpr = 6755399441055744.0  # a float64 of its size has no fraction
    high = ((log_r * 65536.0 + to_nearest) - to_nearest) / 65536.0
    return Ratio(ratio, high.to(REAL), (log_r - high).to(REAL))


@triton.jit
def chosen(where, one, other):
    """Return one ratio for some classes, another for the rest."""
    return Ratio(
        tl.where(where, on_tile(one.ratio), other.ratio),
        tl.where(where, on_tile(one.high), other.high),
        tl.where(where, on_tile(one.low), other.low),
    )


@triton.jit
def term_and_slope(y, of):
    """Return ``r (e^g - 1 - g)`` and ``r (e^g - 1)``, ``g = y - log r``; e^y twice where r = 0."""
    has = of.ratio > 0.0
    gain = tl.where(has, (y - of.high) - of.low, 0.0)
    near = has & (gain <= 1.0)
    power, less, psi = powers(tl.where(near, gain, y))
    term = tl.where(near, of.ratio * psi, power - of.ratio * (1.0 + gain))
    return term, tl.where(near, of.ratio * less, power - of.ratio)


@triton.jit
def score_loss_of_rows(
    a, chain, exact, pi, vb_weight: tl.float64, grad_scale: tl.float64, model,
    REAL: tl.constexpr, ROWS: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """The chain ``exact`` has pi in float64: an error of pi would be one of log r."""
    tokens, token = load_tokens(a, chain, vb_weight, 0.0, model, REAL, ROWS)
    reads = (tokens.settled == 0) & ((token.vb != 0.0) | token.diverges)

    step = load_coefficients(chain, tokens.at, a.num_tokens)
    mask_id = tl.full([ROWS], chain.mask_id, tl.int32)
    double: tl.constexpr = tl.float64
    of_x0 = spread_at(exact, step.bar_base, step.bar_to_mask, tokens.x0, double) + step.bar_keep
    of_xt = spread_at(exact, step.bar_base, step.bar_to_mask, tokens.x_t, double)
    of_mask = spread_at(exact, step.bar_base, step.bar_to_mask, mask_id, double)
    reach = tl.where(reads, tl.where(token.same, of_x0, of_xt), 1.0)
    rest = step.bar_base
    if chain.pi is None:
        rest = rest / chain.num_classes
    ratio_x0, ratio_mask = ratio_of(of_x0 / reach, REAL), ratio_of(of_mask / reach, REAL)
    ratio_rest = ratio_of(rest / reach, REAL)
    # A class that neither data nor the chain hold.
    unheld = on_tile((mask_id == chain.forbidden) & (of_mask == 0.0))

    slope = tl.where(reads, token.vb * token.spread, 0.0)
    factor = gradient_factor(a, grad_scale, REAL)
    total = tl.zeros([ROWS], REAL)
    for start in range(0, a.num_classes, HIGH * LOW):
        classes = classes_from(a, start, ROWS, HIGH, LOW)
        j = classes.j
        y = load_tile(a.logits, classes, on_flat(reads, HIGH) & classes.there, 0.0).to(REAL)
        of = Ratio(on_tile(ratio_rest.ratio), on_tile(ratio_rest.high), on_tile(ratio_rest.low))
        if chain.pi is not None:
            of = Ratio(
                of.ratio * pi_of(chain, classes),
                of.high + load_classes(pi.levels, classes),
                of.low + load_classes(pi.rests, classes),
            )
        is_mask = j == chain.mask_id
        of = chosen(j == on_tile(tokens.x0), ratio_x0, chosen(is_mask, ratio_mask, of))
        term, rise = term_and_slope(y, of)
        counts = on_tile(reads) & (j != on_tile(tokens.x_t)) & (j < a.num_classes)
        counts = counts & ((is_mask & unheld) == 0)
        total += row_sum(tl.where(counts, term, 0.0))
        if a.grad is not None:
            gradient = tl.where(counts & on_tile(slope != 0.0), on_tile(slope * factor) * rise, 0.0)
            store_tile(a.grad, classes, tl.where(on_tile(reads), gradient, on_tile(tokens.value)))

    value = tl.where(slope != 0.0, slope * total, tokens.value)
    if a.WITH_TERMS:
        to = a.loss + tokens.at * 3
        bound = tl.where(reads, token.weight * token.spread * total, tokens.value)
        nothing = tl.where(tokens.settled, tokens.value, float("nan"))
        tl.store(to, value, mask=tokens.inside)
        tl.store(to + 1, bound, mask=tokens.inside)
        tl.store(to + 2, nothing, mask=tokens.inside)
    else:
        tl.store(a.loss + tokens.at, value, mask=tokens.inside)


def score_loss(of: Loss[RankOneStep], reduction: str, late: bool | None = None) -> Any:
    """Return the loss, and with ``late`` its gradient, which a mean leaves undivided where True."""
    made = prepared(of, reduction, late)
    call, chain, scale, real, _ = made
    tile = tile_of(call.num_classes, of.logits.dtype, 2)
    exact = chain_of(call.num_tokens, of.step, torch.float64)
    launch(
        score_loss_of_rows, triton.cdiv(call.num_tokens, tile.rows), of.logits, call, chain, exact,
        levels_of(of.step.pi, real), of.weights.vb, scale, constant(of.model), triton_type(real),
        tile.rows, tile.high, tile.low, num_warps=tile.num_warps,
    )  # fmt: skip
    return made.result(reduction)
