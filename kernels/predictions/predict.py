"""What rows of logits say of their tokens; a row that is shaped by nothing is read once.

All of a law is relative to its largest class, so that what is nearly sure keeps its digits. A class
is drawn by tiles, as ``d3pm_fast/reference/draws.py`` tells: of the tile that is taken a line, of
which it is drawn when all tiles have been read.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...records import Shaping, TokenRandom, unshaped_of
from ...reference.draws import TILE
from ...reference.logspace import compute_dtype
from ..common.launch import launch, triton_type
from ..common.lines import Line, class_in, class_of_line, line_of
from ..common.math import INTERPRETED, exp, expm1, fast_exp, log1p, widened
from ..common.random import NONE, random_of_tokens, uniforms_at
from ..common.tile import (
    Tile,
    classes_from,
    load_tile,
    on_flat,
    on_tile,
    row_max,
    row_sum,
    tile_of,
)
from .shaped import (
    after_cuts,
    divided,
    load_rows,
    mixed,
    mixed_tile,
    options_of,
    shape_of,
    shaped_tile,
)

WIDTH = tl.constexpr(TILE)


class PredictCall(NamedTuple):
    """The tensors of all tokens."""

    logits: Any  # (N, K)
    unconditional: Any  # None for no guidance
    known: Any  # (N,), a class or NONE
    tokens: Any  # (N, 2)
    numbers: Any  # (N, 6)
    num_tokens: Any
    num_classes: Any
    forbidden: Any  # the class whose logits count as -inf; -1 for none
    SAMPLES: Any
    SHAPES: Any  # whether a row is more than read
    DIVIDES: Any  # whether by a temperature
    FORBIDS: Any
    IS_FULL: Any  # whether rows are whole tiles
    TILES: Any  # of a row, a power of two
    shaping: Any


class Law(NamedTuple):
    """What is known of the softmax of rows, or of the part of them that has been read."""

    top: Any
    argmax: Any
    second: Any  # the next largest logit
    others: Any  # the sum of exp(logit - top) but for the largest
    surprise: Any  # the sum of these times logit - top


class Tiles(NamedTuple):
    """What is added up of a row's tiles."""

    of_classes: Any  # (1, LOW), of ``surprise``
    sums: Any  # (TILES,), the masses of each
    tops: Any  # what these are relative to


class Tokens(NamedTuple):
    """The tokens of a program."""

    at: Any
    inside: Any
    known: Any
    reads: Any
    seed: Any
    position: Any
    x_t: Any  # no class: none counts more than its softmax
    tilt: Any  # 1


@triton.jit
def finite(x):
    """Return the least number for -inf, of which exponentials are then 0."""
    return tl.maximum(x, -1e300 if x.dtype == tl.float64 else -3e38)


@triton.jit
def weighed(x, top):
    """Return exp(x - top) of logits, and that times x - top; of -inf both are 0."""
    less = tl.maximum(x - on_tile(finite(top)), -1000.0, propagate_nan=tl.PropagateNan.ALL)
    e = fast_exp(less)
    return e, e * less


@triton.jit
def first_of(x, top, classes):
    """Return the first class that has the largest logit."""
    return -row_max(tl.where(x == on_tile(top), -classes.j, -2147483647))


@triton.jit
def without(x, argmax, classes):
    """Return logits with -inf at one class of each row."""
    return tl.where(classes.high == on_tile(argmax) - classes.low, float("-inf"), x)


@triton.jit
def lines_of(e, argmax, top, classes):
    """Return the masses of lines, given those of all classes but the largest."""
    parts = tl.sum(e, axis=2)
    high = classes.start + tl.arange(0, parts.shape[0])[:, None] * e.shape[2]
    is_of_top = (high <= argmax[None, :]) & (argmax[None, :] < high + e.shape[2])
    return tl.where(is_of_top & (top > float("-inf"))[None, :], parts + 1.0, parts)


@triton.jit
def load_values(
    a, of, shape, classes, CUTS: tl.constexpr, FILLED: tl.constexpr, REAL: tl.constexpr
):
    """Return logits of a tile: as they are, guided, or shaped. FILLED says that none is beyond."""
    if not a.SHAPES:
        HIGH: tl.constexpr = classes.j.shape[0]
        if FILLED and a.TILES > 1:
            x = widened(load_tile(a.logits, classes), REAL)
        else:
            x = load_tile(a.logits, classes, on_flat(of.reads, HIGH) & classes.there)
            x = widened(x, REAL)
        if not FILLED:
            x = tl.where(classes.high < a.num_classes - classes.low, x, float("-inf"))
        if a.FORBIDS:
            place = a.forbidden - classes.start
            if a.TILES == 1 or (place >= 0) & (place < WIDTH):
                x = without(x, tl.full([1], a.forbidden, tl.int32), classes)
        return x
    elif CUTS:
        return shaped_tile(a, shape, classes)
    else:
        return mixed_tile(a, shape.rows, classes)


@triton.jit
def read_tile(
    a, of, shape, draw, CUTS: tl.constexpr, REAL: tl.constexpr,
    ROWS: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """Return the law of rows that are a tile, and the line that a class is to be drawn of."""
    classes = classes_from(a, 0, ROWS, HIGH, LOW)
    x = load_values(a, of, shape, classes, CUTS, a.IS_FULL, REAL)
    top = row_max(x)
    argmax = first_of(x, top, classes)
    rest = without(x, argmax, classes)
    e, surprise = weighed(rest, top)
    parts = lines_of(e, argmax, top, classes)
    others = row_sum(e)
    law = Law(top, argmax, row_max(rest), others, row_sum(surprise))
    return law, line_of(parts, draw * tl.sum(parts.to(tl.float64), axis=0))


@triton.jit
def next_tile(
    a, of, shape, start, law, tiles,
    CUTS: tl.constexpr, FILLED: tl.constexpr, REAL: tl.constexpr,
    HIGH: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """Return what is known of a row with one tile more, see ``read_tiles``."""
    top, argmax, second, others, surprise = law
    of_classes, sums, tops = tiles
    classes = classes_from(a, start, 1, HIGH, LOW)
    x = load_values(a, of, shape, classes, CUTS, FILLED, REAL)
    largest = row_max(x)
    own = tl.zeros([1], REAL)  # the 1 of the largest class, if it is the tile's
    if tl.max((largest > top).to(tl.int32), axis=0) > 0:
        less = tl.maximum(top - largest, -1000.0)
        scale = exp(less)
        surprise = scale * (surprise + less * (1.0 + others))
        others = scale * (1.0 + others)
        of_classes *= scale[:, None]
        argmax = first_of(x, largest, classes)
        x = without(x, argmax, classes)
        second = tl.maximum(top, row_max(x))
        top, own = largest, tl.full([1], 1.0, REAL)
    else:
        second = tl.maximum(second, largest)
    e, weighted = weighed(x, top)
    of_tile = row_sum(e)
    of_classes += tl.sum(weighted, axis=0)
    here = tl.arange(0, a.TILES) == start // (HIGH * LOW)
    # As numbers without a layout: in that of a row each thread would have all tiles.
    sums = tl.where(here, tl.sum(of_tile + own, axis=0), sums)
    tops = tl.where(here, tl.max(top, axis=0), tops)
    return Law(top, argmax, second, others + of_tile, surprise), Tiles(of_classes, sums, tops)


@triton.jit
def read_tiles(
    a, of, shape, CUTS: tl.constexpr, REAL: tl.constexpr,
    HIGH: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """Return the law of a row of several tiles, and the sum of each relative to a top of its own.

    Few tiles have a logit larger than all before: only there the argmax is looked for, and what has
    been added up made relative to it.
    """
    sums, tops = tl.zeros([a.TILES], REAL), tl.full([a.TILES], float("-inf"), REAL)
    top, second = tl.full([1], float("-inf"), REAL), tl.full([1], float("-inf"), REAL)
    argmax, others = tl.zeros([1], tl.int32), tl.zeros([1], REAL)
    surprise, of_classes = tl.zeros([1], REAL), tl.zeros([1, LOW], REAL)
    whole = a.num_classes // (HIGH * LOW) * (HIGH * LOW)
    end = whole
    if not INTERPRETED:
        end = tl.maximum(whole, 1)  # so that the compiler knows that there is a tile
    for start in range(0, end, HIGH * LOW):
        law, tiles = next_tile(
            a, of, shape, start, Law(top, argmax, second, others, surprise),
            Tiles(of_classes, sums, tops), CUTS, True, REAL, HIGH, LOW,
        )  # fmt: skip
        top, argmax, second, others, surprise = law
        of_classes, sums, tops = tiles
    law = Law(top, argmax, second, others, surprise)
    tiles = Tiles(of_classes, sums, tops)
    if not a.IS_FULL:
        law, tiles = next_tile(a, of, shape, whole, law, tiles, CUTS, False, REAL, HIGH, LOW)
    of_classes, sums, tops = tiles
    top, argmax, second, others, surprise = law
    return Law(top, argmax, second, others, surprise + tl.sum(of_classes, axis=1)), sums, tops


@triton.jit
def line_of_tiles(
    a, of, shape, law, sums, tops, random, CUTS: tl.constexpr, REAL: tl.constexpr,
    HIGH: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """Return the line that a class is to be drawn of: one tile is read again."""
    ROWS: tl.constexpr = 1
    tiles = tl.arange(0, a.TILES)
    # The row's numbers without a layout, as in next_tile.
    top = tl.max(finite(law.top), axis=0)
    sums = (sums * exp(tl.maximum(tops - top, -1000.0))).to(tl.float64)
    zero = tl.zeros([a.TILES], tl.int64)
    seed, position = zero + tl.sum(of.seed, axis=0), zero + tl.sum(of.position, axis=0)
    choices, draws = uniforms_at(seed, position, random, tiles)
    tile = tl.max(tl.where(choices * tl.cumsum(sums, axis=0) < sums, tiles, 0), axis=0)
    draw = tl.sum(tl.where(tiles == tile, draws, 0.0), axis=0)
    classes = classes_from(a, tile * (HIGH * LOW), ROWS, HIGH, LOW)
    x = load_values(a, of, shape, classes, CUTS, a.IS_FULL, REAL)
    e, _ = weighed(x, law.top)
    parts = tl.sum(e, axis=2)
    line = line_of(parts, draw * tl.sum(parts.to(tl.float64), axis=0))
    return Line(tile * HIGH + line.index, line.mass, line.into)


@triton.jit
def read_rows(
    a, of, shape, random, CUTS: tl.constexpr, DRAWS: tl.constexpr,
    REAL: tl.constexpr, ROWS: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """Return the law of rows, and the line that a class is to be drawn of."""
    if a.TILES == 1:
        _, draw = uniforms_at(of.seed, of.position, random, 0)
        return read_tile(a, of, shape, draw, CUTS, REAL, ROWS, HIGH, LOW)
    else:
        law, sums, tops = read_tiles(a, of, shape, CUTS, REAL, HIGH, LOW)
        line = Line(law.argmax, law.others, law.others)
        if DRAWS:
            line = line_of_tiles(a, of, shape, law, sums, tops, random, CUTS, REAL, HIGH, LOW)
        return law, line


@triton.jit
def draw_class(a, of, shape, law, line, REAL: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr):
    """Return the class drawn of a line."""
    if not a.SHAPES:
        return class_of_line(a, of, finite(law.top), line, REAL, LOW)
    else:
        ROWS: tl.constexpr = of.at.shape[0]
        start = tl.max(line.index, axis=0) // HIGH * (HIGH * LOW)
        classes = classes_from(a, start, ROWS, HIGH, LOW)
        e, _ = weighed(shaped_tile(a, shape, classes), law.top)
        mass = tl.sum(tl.where(classes.high // LOW == on_tile(line.index), e, 0.0), axis=0)
        j = (line.index * LOW)[:, None] + tl.arange(0, LOW)[None, :]
        return class_in(a, j, mass, line, REAL)


@triton.jit
def log_prob(a, of, shape, law, chosen, CUTS: tl.constexpr):
    """Return the logarithm of the probability of a class."""
    at = of.at * a.num_classes
    if not a.SHAPES:
        logit = tl.load(a.logits + at + chosen, mask=of.reads, other=0.0).to(law.top.dtype)
    else:
        logit = on_tile(mixed(a, shape.rows, at, chosen, of.reads))
        if CUTS:
            logit = after_cuts(a, divided(a, shape.rows, logit), on_tile(chosen), shape)
        logit = row_max(logit)
    return (logit - law.top) - log1p(law.others)


@triton.jit
def stored(of, has_law, x, of_known, none):
    """Return what is written of tokens that are read, are known, or are neither."""
    x = tl.where(of.reads, tl.where(has_law, x, none), of_known)
    return tl.where(of.known < NONE, none, x)


@triton.jit
def store_number(a, of, has_law, WHICH: tl.constexpr, x, of_known):
    """Write a number of each token."""
    x = stored(of, has_law, x, of_known, float("nan"))
    tl.store(a.numbers + of.at * 6 + WHICH, x, mask=of.inside)


@triton.jit
def store_class(a, of, has_law, WHICH: tl.constexpr, j):
    """Write a class of each token."""
    j = stored(of, has_law, j.to(tl.int64), of.known, NONE)
    tl.store(a.tokens + of.at * 2 + WHICH, j, mask=of.inside)


@triton.jit
def store_all(a, of, raw, chosen, log_p, raw_log_p):
    """Write what there is to say of each token."""
    has_law = (raw.top > float("-inf")) & (raw.top < float("inf")) & (raw.others < float("inf"))
    total, log_total = 1.0 + raw.others, log1p(raw.others)
    store_class(a, of, has_law, 0, chosen)
    store_class(a, of, has_law, 1, raw.argmax)
    store_number(a, of, has_law, 0, log_p, 0.0)
    store_number(a, of, has_law, 1, raw_log_p, 0.0)
    store_number(a, of, has_law, 2, 1.0 / total, 1.0)
    store_number(a, of, has_law, 3, -expm1(raw.second - raw.top) / total, 1.0)
    store_number(a, of, has_law, 4, log_total - raw.surprise / total, 0.0)
    store_number(a, of, has_law, 5, raw.top + log_total, 0.0)


@triton.jit
def predict_rows(
    a, random, share: tl.float64, temperature: tl.float64, top_p: tl.float64,
    floor: tl.float64,
    REAL: tl.constexpr, ROWS: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """Write two classes and six numbers of each token."""
    at = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = at < a.num_tokens
    known = tl.load(a.known + at, mask=inside, other=0)
    seed = tl.load(random.seeds + at, mask=inside, other=0)
    position = tl.load(random.positions + at, mask=inside, other=0)
    nowhere, one = tl.full([ROWS], -1, tl.int64), tl.full([ROWS], 1.0, REAL)
    of = Tokens(at, inside, known, known == NONE, seed, position, nowhere, one)
    zero, first = tl.zeros([ROWS], REAL), tl.zeros([ROWS], tl.int32)
    top, argmax, second, others, surprise = zero, first, zero, zero, zero
    chosen, log_p, raw_log_p = first, zero, zero
    if tl.max(of.reads.to(tl.int32), axis=0) > 0:
        shape = None
        if a.SHAPES:
            rows = load_rows(a, of.reads, share, temperature, REAL, ROWS, HIGH, LOW)
            shape = shape_of(a, rows, top_p, floor, ROWS, HIGH, LOW)
        raw, line = read_rows(
            a, of, shape, random, False, a.SAMPLES and not a.SHAPES, REAL, ROWS, HIGH, LOW
        )
        law = raw
        if a.SHAPES:
            law, line = read_rows(a, of, shape, random, True, a.SAMPLES, REAL, ROWS, HIGH, LOW)
        top, argmax, second, others, surprise = raw
        chosen = argmax
        if a.SAMPLES:
            chosen = draw_class(a, of, shape, law, line, REAL, HIGH, LOW)
        raw_log_p = log_prob(a, of, shape, raw, chosen, False)
        log_p = raw_log_p
        if a.SHAPES:
            log_p = log_prob(a, of, shape, law, chosen, True)
    raw = Law(top, argmax, second, others, surprise)
    store_all(a, of, raw, chosen, log_p, raw_log_p)


def _numbers(num_classes: int, dtype: torch.dtype) -> int | None:
    """Return how many of a row a thread has; with more, some Triton keeps one elsewhere."""
    if dtype == torch.float64 or num_classes > 256:
        return None
    return 64 if dtype == torch.float32 else 128


def _tile_of(num_classes: int, dtype: torch.dtype, shapes: bool) -> Tile:
    """Return a tile that holds rows whole, or as many of their classes as a draw is of."""
    if shapes:
        tile = tile_of(num_classes, dtype, copies=4)
    else:
        tile = tile_of(num_classes, dtype, in_vectors=_numbers(num_classes, dtype))
    if num_classes <= tile.num_classes <= TILE:
        return tile
    num_warps = 8 if shapes or dtype == torch.float64 else 2
    low = num_warps * 32 * (16 // dtype.itemsize)
    return Tile(1, TILE // low, low, num_warps)


def predict(
    logits: Tensor, known: Tensor, random: TokenRandom, samples: bool, shaping: Shaping
) -> tuple[Tensor, Tensor]:
    """Return two classes and six numbers of each token, as the reference does."""
    real = compute_dtype(logits.dtype)
    num_tokens, num_classes = known.numel(), logits.shape[-1]
    tokens = known.new_empty(*known.shape, 2)
    numbers = logits.new_empty(*known.shape, 6, dtype=real)
    shapes = shaping != unshaped_of(num_classes, shaping.excluded)
    tile = _tile_of(num_classes, logits.dtype, shapes)
    constants = (
        samples,
        shapes,
        shaping.temperature != 1,
        shaping.excluded >= 0,
        num_classes % tile.num_classes == 0,
        triton.next_power_of_2(triton.cdiv(num_classes, tile.num_classes)),
    )
    # A tile of as many classes as a draw is of leaves no registers to hold its logits in.
    holding = tile_of(num_classes, logits.dtype, copies=4)
    options, *of_shaping = options_of(num_classes, shaping, holding)
    a = PredictCall(
        logits, shaping.unconditional, known, tokens, numbers, num_tokens, num_classes,
        shaping.excluded, *map(tl.constexpr, constants), options,
    )  # fmt: skip
    launch(
        predict_rows, triton.cdiv(num_tokens, tile.rows), logits, a, random_of_tokens(random),
        *of_shaping, triton_type(real), tile.rows, tile.high, tile.low, num_warps=tile.num_warps,
    )  # fmt: skip
    return tokens, numbers
