"""Draws ``x_s ~ p(x_s | x_t)`` of rank-one chains.

``csrc/p_sample_token.h`` tells how. Choices are made in float64, in the same order of operations as
there, so that every implementation makes the same ones: but of float32 masses that differ by
rounding, the hardware's power of two being one of them, they differ at ties.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...chains.structures import RankOneStep
from ...records import Model, Random, Shaping, unshaped_of
from ..common.launch import constant, launch, triton_type
from ..common.lines import allowed, class_of_line, line_of, masses_of
from ..common.math import exp, widened
from ..common.once import once, once_of
from ..common.random import NONE, draw_base, random_of, uniforms
from ..common.staged import load_staged, staged_tile_of
from ..common.tile import classes_from, load_tile, on_flat, on_tile, row_max, row_sum, tile_of
from ..predictions.shaped import (
    after_cuts,
    divided,
    load_rows,
    mixed,
    options_of,
    shape_of,
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
    FORBIDS: Any  # whether a class is forbidden
    IS_FULL: Any  # whether a tile that holds rows whole has no more classes
    IS_STAGED: Any  # whether it is one of ``staged.py``
    shaping: Any  # None where logits are taken as they are


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
    x = row_max(after_cuts(a, x, on_tile(rows.x_t), rows.shape))
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


class Draws(NamedTuple):
    """The tokens of a program, and their random numbers."""

    at: Any
    inside: Any
    good: Any  # whether the indices are in their ranges
    x_t: Any
    token: Any
    choice: Any
    draw: Any
    reads: Any  # whether the row may matter
    tilt: Any  # of s[x_t]


@triton.jit
def load_draws(a, chain, random, model, REAL: tl.constexpr, ROWS: tl.constexpr):
    """Return the program's tokens, what decides them and their random numbers."""
    at = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = at < a.num_tokens
    step = load_coefficients(chain, at, a.num_tokens)
    x_t, is_class = load_class(a.x_t, at, a.num_tokens, a.num_classes)
    good = step.exists & is_class
    token = token_of(chain, step, x_t, model.direct)
    choice, draw = uniforms(random, at, inside)
    reads = once_of(good & (stays(token, choice) == 0))
    draw = once(draw)
    tilt = tl.full([ROWS], 1.0, tl.float64)
    if model.posterior_mean:
        tilt = posterior_mean_tilt(token, token.u, token.bar_xt)
    return Draws(at, inside, good, x_t, token, choice, draw, reads, tilt.to(REAL))


@triton.jit
def drawn_class(a, chain, of, mass_xt, total, of_model):
    """Return the class drawn for each token, given that of the model."""
    drawn = component(of.token, of.choice, mass_xt, total)
    of_pi = draw_base(of.draw, a)
    mask_id = tl.full([of.x_t.shape[0]], chain.mask_id, tl.int64)
    other = tl.where(drawn == PI, of_pi, tl.where(drawn == MASK, mask_id, of.x_t))
    moved = tl.where(drawn == MODEL, of_model.to(tl.int64), other)
    return tl.where(of.reads, tl.where(total > 0.0, moved, NONE), of.x_t)


@triton.jit
def store_class(a, of, chosen):
    """Write the class of each token; NONE where an index is bad."""
    tl.store(a.out + of.at, tl.where(of.good, chosen, NONE), mask=of.inside)


@triton.jit
def p_sample_of_tokens(
    a, chain, random, share: tl.float64, temperature: tl.float64, top_p: tl.float64,
    floor: tl.float64, model,
    REAL: tl.constexpr, ROWS: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """Draw a token's component, and where that is of the row or of pi, its class."""
    draws = load_draws(a, chain, random, model, REAL, ROWS)
    chosen = draws.x_t
    if tl.max(draws.reads.to(tl.int32), axis=0) > 0:
        of = load_rows(a, draws.reads, share, temperature, REAL, ROWS, HIGH, LOW)
        shape = shape_of(a, of, top_p, floor, ROWS, HIGH, LOW)
        rows = Rows(shape, draws.at, draws.reads, draws.x_t, draws.tilt)
        total = tl.zeros([ROWS], tl.float64)
        for start in range(0, a.num_classes, HIGH * LOW):
            classes = classes_from(a, start, ROWS, HIGH, LOW)
            total += row_sum(masses(a, rows, classes))
        of_model = draw_class(a, rows, draws.draw * total, ROWS, HIGH, LOW)
        chosen = drawn_class(a, chain, draws, mass_of_x_t(a, rows), total, of_model)
    store_class(a, draws, chosen)


@triton.jit
def load_whole(a, of, classes, REAL: tl.constexpr):
    """Return the logits of rows, any numbers where they are not to be read."""
    if a.IS_STAGED:
        x = load_staged(a, a.logits, classes).to(REAL)
    else:
        HIGH: tl.constexpr = classes.j.shape[0]
        x = load_tile(a.logits, classes, on_flat(of.reads, HIGH) & classes.there, None)
        x = widened(x, REAL)
    is_forbidden = classes.high == a.forbidden - classes.low
    return allowed(a, x, classes.high < a.num_classes - classes.low, is_forbidden)


@triton.jit
def p_sample_of_whole_rows(
    a, chain, random, model,
    REAL: tl.constexpr, ROWS: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """The same of logits as they are, for rows that a tile holds whole.

    A line of the tile is drawn by its mass, then one of its classes.
    """
    of = load_draws(a, chain, random, model, REAL, ROWS)
    chosen = of.x_t
    if tl.max(of.reads.to(tl.int32), axis=0) > 0:
        classes = classes_from(a, 0, ROWS, HIGH, LOW)
        x = load_whole(a, of, classes, REAL)
        top = row_max(x)
        x_t = of.x_t.to(tl.int32)
        here = classes.high == on_tile(x_t) - classes.low
        part = tl.sum(masses_of(a, x, on_tile(top), here, on_tile(of.tilt)), axis=2)
        total = tl.sum(part.to(tl.float64), axis=0)
        line = line_of(part, of.draw * total)
        of_model = class_of_line(a, of, top, line, REAL, LOW)
        has_xt = of.reads & (x_t != a.forbidden)
        never = float("-inf")
        logit_xt = tl.load(a.logits + of.at * a.num_classes + x_t, mask=has_xt, other=never)
        mass_xt = masses_of(a, logit_xt.to(REAL), once(top), has_xt, of.tilt).to(tl.float64)
        chosen = drawn_class(a, chain, of, mass_xt, once(total), once(of_model))
    store_class(a, of, chosen)


def _numbers(dtype: torch.dtype) -> int | None:
    """Return how many of a row a thread has."""
    if dtype == torch.float64:
        return None
    return 64 if dtype == torch.float32 else 128


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
    unshaped = shaping is None
    shaping = shaping or unshaped_of(num_classes, step.forbidden)
    chain, draw = chain_of(num_tokens, step, torch.float64), random_of(random, num_tokens)
    staged = staged_tile_of(num_classes, logits.dtype) if unshaped else None
    tile = staged or tile_of(num_classes, logits.dtype, in_vectors=_numbers(logits.dtype))
    constants = (
        shaping.temperature != 1,
        step.forbidden >= 0,
        tile.num_classes == num_classes,
        staged is not None,
    )
    a = PSampleCall(
        logits, shaping.unconditional, x_t, out, step.pi_cdf, num_tokens, num_classes,
        step.forbidden, tl.constexpr(num_classes.bit_length()), *map(tl.constexpr, constants),
        None,
    )  # fmt: skip
    if staged:
        a = a._replace(num_classes=tl.constexpr(num_classes))
    of_kind = constant(model), triton_type(real)
    if unshaped and tile.num_classes >= num_classes:
        launch(
            p_sample_of_whole_rows, triton.cdiv(num_tokens, tile.rows), logits, a, chain, draw,
            *of_kind, tile.rows, tile.high, tile.low, num_warps=tile.num_warps,
        )  # fmt: skip
        return out
    tile = tile_of(num_classes, logits.dtype, copies=4)
    options, *of_shaping = options_of(num_classes, shaping, tile)
    launch(
        p_sample_of_tokens, triton.cdiv(num_tokens, tile.rows), logits,
        a._replace(shaping=options), chain, draw, *of_shaping, *of_kind,
        tile.rows, tile.high, tile.low, num_warps=tile.num_warps,
    )  # fmt: skip
    return out
