"""Logits shaped for sampling: guided, divided by a temperature, and cut to the largest.

Two cuts keep the fewest classes, largest first, whose weights reach a target: k weights of 1, or
the share p of exp(logit). The last one they keep is found by bisection: first its logit, over the
floating point numbers as integers of the same order, then its class among those of that logit.
"""

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...records import Shaping
from ..common.launch import launch, triton_type
from ..common.math import exp, quotient
from ..common.tile import (
    Tile,
    classes_from,
    on_flat,
    on_tile,
    row_max,
    row_sum,
    store_tile,
    tile_of,
)


class ShapingCall(NamedTuple):
    """The tensors of all tokens."""

    logits: Any  # (N, K)
    unconditional: Any  # None for no guidance
    out: Any
    num_tokens: Any
    num_classes: Any
    forbidden: Any  # the class whose logits count as -inf; -1 for none
    DIVIDES: Any  # whether by a temperature
    shaping: Any


class Rows(NamedTuple):
    """What a program works on."""

    reads: Any  # (HIGH * ROWS, 1)
    share: Any  # of the guidance, which starts from the logits where it is far
    far: Any
    temperature: Any
    shift: Any  # the largest mixed logit where a temperature divides, else 0
    top: Any  # the largest logit that is made


class Cut(NamedTuple):
    """The last class that is kept, and its logit as an integer."""

    key: Any
    last: Any


class Shape(NamedTuple):
    """What any shaped logit of a program's rows is made of; anything that is not asked for."""

    rows: Any
    held: Any  # the logits that are made, where a tile holds them whole
    by_count: Any
    by_mass: Any
    floor: Any  # the least logit that is kept, relative to the largest


@triton.jit
def key_of(x):
    """Return floating point numbers as integers of the same order, -0 as 0."""
    if x.dtype == tl.float64:
        bits = x.to(tl.int64, bitcast=True)
        return tl.where(bits < 0, -0x8000000000000000 - bits, bits)
    else:
        bits = x.to(tl.int32, bitcast=True)
        return tl.where(bits < 0, -0x80000000 - bits, bits)


@triton.jit
def is_kept(x, j, cut):
    """Return which classes come no later than the cut's."""
    key, at = key_of(x), on_tile(cut.key)
    return (key > at) | ((key == at) & (j <= on_tile(cut.last)))


@triton.jit
def mixed(a, rows, first, at, inside):
    """Return guided logits ``at`` from ``first`` on, -inf where they are not inside.

    The interpolation starts from the nearer end, so that it is exact at both.
    """
    x = tl.load(a.logits + first + at, mask=inside, other=float("-inf")).to(rows.share.dtype)
    if a.unconditional is not None:
        other = tl.load(a.unconditional + first + at, mask=inside, other=float("-inf")).to(x.dtype)
        forbidden = (x == float("-inf")) | (other == float("-inf"))
        start = tl.where(rows.far, x, other)
        x = tl.where(forbidden, float("-inf"), start + rows.share * (x - other))
    return x


@triton.jit
def mixed_tile(a, rows, classes):
    """Return guided logits of a tile, -inf for one that is forbidden."""
    reads = rows.reads & classes.there
    x = tl.reshape(mixed(a, rows, classes.first, classes.at + classes.on, reads), classes.j.shape)
    return tl.where(classes.j == a.forbidden, float("-inf"), x)


@triton.jit
def divided(a, rows, x):
    """Return the logits before any cut."""
    if a.DIVIDES:
        return quotient(x - on_tile(rows.shift), rows.temperature)
    else:
        return x


@triton.jit
def made_tile(a, rows, held, classes):
    """Return the logits before any cut, of a whole tile of classes."""
    if held is None:
        return divided(a, rows, mixed_tile(a, rows, classes))
    else:
        return held


@triton.jit
def weigh(
    a, rows, held, before, cut, BY_MASS: tl.constexpr,
    ROWS: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """Return what an earlier cut and this one keep: its weight in float64, and its least key.

    And the largest key of what this one does not keep.
    """
    total = tl.zeros([ROWS], tl.float64)
    least = key_of(tl.full([ROWS], float("inf"), rows.top.dtype))
    most = key_of(tl.full([ROWS], float("-inf"), rows.top.dtype))
    for start in range(0, a.num_classes, HIGH * LOW):
        classes = classes_from(a, start, ROWS, HIGH, LOW)
        x = made_tile(a, rows, held, classes)
        is_class = classes.j < a.num_classes
        if before is not None:
            is_class &= is_kept(x, classes.j, before)
        kept = is_class & is_kept(x, classes.j, cut)
        weight = tl.full([HIGH, ROWS, LOW], 1.0, x.dtype)
        if BY_MASS:
            weight = exp(x - on_tile(rows.top))
        total += row_sum(tl.where(kept, weight, 0.0)).to(tl.float64)
        key = key_of(x)
        least = tl.minimum(least, -row_max(tl.where(kept, -key, on_tile(-least))))
        most = tl.maximum(most, row_max(tl.where(is_class & (kept == 0), key, on_tile(most))))
    return total, least, most


@triton.jit
def classes_of(a, rows, held, key, ROWS: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr):
    """Return the first and the last class of a key."""
    first = tl.full([ROWS], a.num_classes, tl.int32)
    last = tl.zeros([ROWS], tl.int32)
    for start in range(0, a.num_classes, HIGH * LOW):
        classes = classes_from(a, start, ROWS, HIGH, LOW)
        x = made_tile(a, rows, held, classes)
        equal = (key_of(x) == on_tile(key)) & (classes.j < a.num_classes)
        first = tl.minimum(first, -row_max(tl.where(equal, -classes.j, on_tile(-first))))
        last = tl.maximum(last, row_max(tl.where(equal, classes.j, 0)))
    return first, last


@triton.jit
def find_cut(
    a, rows, held, before, share, BY_MASS: tl.constexpr,
    ROWS: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """Return the first cut whose weight reaches the target: share, by mass times that of all.

    Each turn takes a bound to the next logit of the row.
    """
    everything = tl.full([ROWS], a.num_classes, tl.int32)
    low = key_of(tl.full([ROWS], float("-inf"), rows.top.dtype))
    high = key_of(rows.top)
    target = tl.full([ROWS], share, tl.float64)
    if BY_MASS:
        total, least, most = weigh(
            a, rows, held, before, Cut(low, everything), BY_MASS, ROWS, HIGH, LOW
        )
        target *= total
    while tl.max((low < high).to(tl.int32), axis=0) > 0:
        middle = (low | high) - ((low ^ high) >> 1)  # half of the sum, rounded up
        total, least, most = weigh(
            a, rows, held, before, Cut(middle, everything), BY_MASS, ROWS, HIGH, LOW
        )
        goes_on, reached = low < high, total >= target
        low = tl.where(goes_on & reached, least, low)
        high = tl.where(goes_on & (reached == 0), most, high)
    first, last = classes_of(a, rows, held, low, ROWS, HIGH, LOW)
    while tl.max((first < last).to(tl.int32), axis=0) > 0:
        middle = (first + last) // 2
        total, least, most = weigh(
            a, rows, held, before, Cut(low, middle), BY_MASS, ROWS, HIGH, LOW
        )
        goes_on, reached = first < last, total >= target
        last = tl.where(goes_on & reached, middle, last)
        first = tl.where(goes_on & (reached == 0), middle + 1, first)
    return Cut(low, last)


@triton.jit
def load_rows(
    a, reads, share, temperature, REAL: tl.constexpr,
    ROWS: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """Look at the rows that are to be read and return them."""
    reads = on_flat(reads, HIGH)
    share, far = tl.full([1], share, REAL), tl.full([1], a.shaping.FAR, tl.int1)
    temperature = tl.full([1], temperature, REAL)
    zero = tl.zeros([ROWS], REAL)
    # The least number, not -inf: a row of nothing but -inf keeps them.
    top = tl.full([ROWS], -1.7976931348623157e308 if REAL == tl.float64 else -3.4028235e38, REAL)
    rows = Rows(reads, share, far, temperature, zero, top)
    for start in range(0, a.num_classes, HIGH * LOW):
        classes = classes_from(a, start, ROWS, HIGH, LOW)
        x = mixed_tile(a, rows, classes)
        top = tl.maximum(top, row_max(tl.where(x == x, x, float("inf"))))  # NaN is not lost
    if a.DIVIDES:
        return Rows(reads, share, far, temperature, top, zero)
    else:
        return Rows(reads, share, far, temperature, zero, top)


@triton.jit
def after_cuts(a, x, j, shape):
    """Return logits that are made, -inf where a cut does not keep them; NaN stays."""
    if a.shaping.COUNTS:
        x = tl.where(is_kept(x, j, shape.by_count) | (x != x), x, float("-inf"))
    if a.shaping.BY_MASS:
        x = tl.where(is_kept(x, j, shape.by_mass) | (x != x), x, float("-inf"))
    if a.shaping.HAS_FLOOR:
        x = tl.where(x - on_tile(shape.rows.top) < shape.floor, float("-inf"), x)
    return x


@triton.jit
def shaped_tile(a, shape, classes):
    """Return the shaped logits of a whole tile of classes."""
    held = shape.held if a.shaping.WHOLE else None
    return after_cuts(a, made_tile(a, shape.rows, held, classes), classes.j, shape)


@triton.jit
def shape_of(a, rows, top_p, floor, ROWS: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr):
    """Return how a program's rows are shaped."""
    floor = tl.full([1], floor, rows.top.dtype)
    held, nothing = floor, Cut(key_of(rows.top), tl.zeros([ROWS], tl.int32))
    by_count, by_mass = nothing, nothing
    if a.shaping.WHOLE:
        held = made_tile(a, rows, None, classes_from(a, 0, ROWS, HIGH, LOW))
    at_hand = held if a.shaping.WHOLE else None
    if a.shaping.COUNTS:
        by_count = find_cut(a, rows, at_hand, None, a.shaping.top_k, False, ROWS, HIGH, LOW)
    if a.shaping.BY_MASS:
        before = by_count if a.shaping.COUNTS else None
        by_mass = find_cut(a, rows, at_hand, before, top_p, True, ROWS, HIGH, LOW)
    return Shape(rows, held, by_count, by_mass, floor)


@triton.jit
def shape_rows(
    a, share: tl.float64, temperature: tl.float64, top_p: tl.float64, floor: tl.float64,
    REAL: tl.constexpr, ROWS: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """Write the shaped logits."""
    inside = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS) < a.num_tokens
    rows = load_rows(a, inside, share, temperature, REAL, ROWS, HIGH, LOW)
    shape = shape_of(a, rows, top_p, floor, ROWS, HIGH, LOW)
    for start in range(0, a.num_classes, HIGH * LOW):
        classes = classes_from(a, start, ROWS, HIGH, LOW)
        store_tile(a.out, classes, shaped_tile(a, shape, classes))


class Options(NamedTuple):
    """What of a shaping is done."""

    top_k: Any
    FAR: Any  # whether the guidance starts from the logits
    COUNTS: Any
    BY_MASS: Any
    HAS_FLOOR: Any
    WHOLE: Any  # whether the logits are held for the cuts


def options_of(
    num_classes: int, shaping: Shaping, tile: Tile
) -> tuple[Options, float, float, float, float]:
    """Return what kernels take of how to shape rows, and the numbers that are float64."""
    _, guidance, temperature, top_k, top_p, min_p, _ = shaping
    far, counts, by_mass = abs(guidance) >= 0.5, top_k < num_classes, top_p < 1
    whole = (counts or by_mass) and tile.num_classes >= num_classes
    made = map(tl.constexpr, (far, counts, by_mass, min_p > 0, whole))
    share, floor = guidance - 1 if far else guidance, math.log(min_p) if min_p > 0 else 0.0
    return Options(top_k, *made), share, temperature, top_p, floor


def shaped_logits(logits: Tensor, shaping: Shaping) -> Tensor:
    """Return the shaped logits, of the type of the calculation."""
    real = torch.float64 if logits.dtype == torch.float64 else torch.float32
    out = torch.empty_like(logits, dtype=real)
    num_classes = logits.shape[-1]
    num_tokens = logits.numel() // num_classes
    tile = tile_of(num_classes, logits.dtype, copies=2)
    options, *numbers = options_of(num_classes, shaping, tile)
    launch(
        shape_rows, triton.cdiv(num_tokens, tile.rows), logits,
        ShapingCall(
            logits, shaping.unconditional, out, num_tokens, num_classes, shaping.excluded,
            tl.constexpr(shaping.temperature != 1), options,
        ),
        *numbers, triton_type(real), tile.rows, tile.high, tile.low, num_warps=tile.num_warps,
    )  # fmt: skip
    return out
