"""Draws ``x_s ~ p(x_s | x_t)`` of rank-one chains.

``csrc/p_sample_token.h`` tells how. Choices are made in float64, in the same order of operations as
there, so that every implementation makes the same ones.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...chains.structures import RankOneStep
from ...records import Model, Random, Shaping
from ..common.launch import constant, launch, triton_type
from ..common.math import exp
from ..common.random import NONE, draw_base, random_of, uniforms
from ..common.tile import classes_from, on_tile, row_max, row_sum, tile_of
from ..predictions.shaped import (
    Shape,
    after_cuts,
    divided,
    find_cut,
    load_rows,
    made_tile,
    mixed,
    options_of,
    shaped_tile,
)
from .step import chain_of, load_class, load_coefficients, posterior_mean_tilt, spread_at

MODEL, PI, MASK, STAY = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)


class PSampleCall(NamedTuple):
    """The tensors of all tokens."""

    logits: Any  # (N, K)
    unconditional: Any  # None for no guidance
    x_t: Any
    out: Any
    cdf: Any  # of pi; None where all are 1/K
    num_tokens: Any
    num_classes: Any
    forbidden: Any  # the class whose logits count as -inf; -1 for none
    STEPS: Any  # that halve num_classes to nothing
    DIVIDES: Any  # whether by a temperature


class Token(NamedTuple):
    """What a token's draw is decided by."""

    predicts_x0: Any
    only_mask: Any  # whether pi has no mass and x_t is the mask
    keep: Any
    u: Any
    bar_keep: Any
    bar_xt: Any
    model: Any  # running sums of masses
    pi: Any
    mask: Any


class Rows(NamedTuple):
    """What a program reads: logits of a shape, in rows of these tokens, and s[x_t]'s tilt."""

    shape: Any
    at: Any
    reads: Any
    x_t: Any
    tilt: Any


@triton.jit
def token_of(chain, step, x_t, DIRECT: tl.constexpr):
    """Return what a step is to a token at x_t."""
    u = spread_at(chain, step.base, step.to_mask, x_t, tl.float64)
    model = u * step.bar_keep
    pi = model + u * step.bar_base
    return Token(
        (step.target_time == 0.0) & DIRECT,
        (step.bar_base == 0.0) & (x_t == chain.mask_id),
        step.keep,
        u,
        step.bar_keep,
        spread_at(chain, step.bar_base, step.bar_to_mask, x_t, tl.float64),
        model,
        pi,
        pi + u * step.bar_to_mask,
    )


@triton.jit
def stays(token, choice):
    """Return whether it stays whatever its row."""
    least = choice * (token.u + token.keep * token.bar_xt)
    always = (least >= token.mask) | ((least >= token.model) & token.only_mask)
    return always & (token.predicts_x0 == 0)


@triton.jit
def component(token, choice, mass_xt, total):
    """Return which component is drawn, given what the row has at x_t, tilted, and in all."""
    here = token.bar_keep * mass_xt / total + token.bar_xt
    threshold = choice * (token.u + token.keep * here)
    other = tl.where(threshold < token.pi, PI, tl.where(threshold < token.mask, MASK, STAY))
    return tl.where(token.predicts_x0 | (threshold < token.model), MODEL, other)


@triton.jit
def masses(a, rows, classes):
    """Return s of some classes times a number a row, in float64: 1e-9 keeps its share beside 1."""
    of = rows.shape.rows
    e = exp(shaped_tile(a, rows.shape, classes) - on_tile(of.top))
    tilted = tl.where(classes.j == on_tile(rows.x_t), e * on_tile(rows.tilt), e)
    return tl.where(classes.j < a.num_classes, tilted, 0.0).to(tl.float64)


@triton.jit
def mass_of_x_t(a, rows):
    """Return that of x_t, where its row is read."""
    of = rows.shape.rows
    reads = rows.reads & (rows.x_t != a.forbidden)
    x = divided(a, of, on_tile(mixed(a, of, rows.at * a.num_classes, rows.x_t, reads)))
    x = row_max(after_cuts(x, on_tile(rows.x_t), rows.shape))
    return (exp(x - of.top) * rows.tilt).to(tl.float64)


@triton.jit
def draw_class(a, rows, target, ROWS: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr):
    """Return the first class whose running sum passes the target.

    Where rounding leaves none, the last one that has any mass.
    """
    found = tl.full([ROWS], a.num_classes, tl.int32)
    last = tl.zeros([ROWS], tl.int32)
    before = tl.zeros([ROWS], tl.float64)
    for start in range(0, a.num_classes, HIGH * LOW):
        classes = classes_from(a, start, ROWS, HIGH, LOW)
        mass = masses(a, rows, classes)
        parts = tl.sum(mass, axis=2)
        earlier = before[None, :] + tl.cumsum(parts, axis=0) - parts
        running = earlier[:, :, None] + tl.cumsum(mass, axis=2)
        passes = (mass > 0.0) & (running > on_tile(target))
        found = tl.minimum(found, -row_max(tl.where(passes, -classes.j, -a.num_classes)))
        last = tl.maximum(last, row_max(tl.where(mass > 0.0, classes.j, 0)))
        before += tl.sum(parts, axis=0)
    return tl.where(found < a.num_classes, found, last)


@triton.jit
def p_sample_of_tokens(
    a, chain, random, shaping, share: tl.float64, temperature: tl.float64, top_p: tl.float64,
    model, REAL: tl.constexpr, ROWS: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """Draw a token's component, and where that is of the row or of pi, its class."""
    at = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = at < a.num_tokens
    step = load_coefficients(chain, at, a.num_tokens)
    x_t, is_class = load_class(a.x_t, at, a.num_tokens, a.num_classes)
    good = step.exists & is_class
    token = token_of(chain, step, x_t, model.direct)
    choice, draw = uniforms(random, at, inside)
    reads = good & (stays(token, choice) == 0)
    tilt = tl.full([ROWS], 1.0, tl.float64)
    if model.posterior_mean:
        tilt = posterior_mean_tilt(token, token.u, token.bar_xt)
    tilt = tilt.to(REAL)

    chosen = x_t
    if tl.max(reads.to(tl.int32), axis=0) > 0:
        of = load_rows(a, reads, shaping, share, temperature, REAL, ROWS, HIGH, LOW)
        every = classes_from(a, 0, ROWS, HIGH, LOW)
        held = made_tile(a, of, None, every) if shaping.WHOLE else None
        by_count, by_mass = None, None
        if shaping.COUNTS:
            by_count = find_cut(a, of, held, None, shaping.top_k, False, ROWS, HIGH, LOW)
        if shaping.BY_MASS:
            by_mass = find_cut(a, of, held, by_count, top_p, True, ROWS, HIGH, LOW)
        rows = Rows(Shape(of, held, by_count, by_mass), at, reads, x_t, tilt)
        total = tl.zeros([ROWS], tl.float64)
        for start in range(0, a.num_classes, HIGH * LOW):
            classes = classes_from(a, start, ROWS, HIGH, LOW)
            total += row_sum(masses(a, rows, classes))
        drawn = component(token, choice, mass_of_x_t(a, rows), total)
        of_model = draw_class(a, rows, draw * total, ROWS, HIGH, LOW).to(tl.int64)
        of_pi = draw_base(draw, a)
        mask_id = tl.full([ROWS], chain.mask_id, tl.int64)
        other = tl.where(drawn == PI, of_pi, tl.where(drawn == MASK, mask_id, x_t))
        moved = tl.where(drawn == MODEL, of_model, other)
        chosen = tl.where(reads, tl.where(total > 0.0, moved, NONE), x_t)
    tl.store(a.out + at, tl.where(good, chosen, NONE), mask=inside)


def p_sample(
    logits: Tensor,
    x_t: Tensor,
    step: RankOneStep,
    model: Model,
    random: Random,
    shaping: Shaping | None = None,
) -> Tensor:
    """Return a draw for each token; NONE where an index is bad, or a row that is read no law.

    Rows of tokens that may move are read, and shaped.
    """
    real = torch.float64 if logits.dtype == torch.float64 else torch.float32
    out = torch.empty_like(x_t)
    num_tokens, num_classes = x_t.numel(), logits.shape[-1]
    shaping = shaping or Shaping(None, 1.0, 1.0, num_classes, 1.0, step.forbidden)
    a = PSampleCall(
        logits, shaping.unconditional, x_t, out, step.pi_cdf, num_tokens, num_classes,
        step.forbidden, tl.constexpr(num_classes.bit_length()),
        tl.constexpr(shaping.temperature != 1),
    )  # fmt: skip
    tile = tile_of(num_classes, logits.dtype, copies=4)
    launch(
        p_sample_of_tokens, triton.cdiv(num_tokens, tile.rows), logits, a,
        chain_of(num_tokens, step, torch.float64), random_of(random, num_tokens),
        *options_of(num_classes, shaping, tile), constant(model), triton_type(real),
        tile.rows, tile.high, tile.low, num_warps=tile.num_warps,
    )  # fmt: skip
    return out
