"""Logits shaped for sampling: guided, divided by a temperature, and cut to the largest.

Both cuts keep the fewest classes, largest first, whose weights reach a target: k weights of 1, or
the share p of exp(logit). The last one they keep is found by bisection: first its logit, over the
floating point numbers as integers of the same order, then its class among those of that logit.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch, triton_type
from .math import exp
from .tile import classes_from, on_tile, row_max, row_sum, tile_of


class Arguments(NamedTuple):
    """The tensors of all tokens."""

    logits: Any  # (N, K)
    unconditional: Any  # None for no guidance
    out: Any
    num_tokens: Any
    num_classes: Any


class Rows(NamedTuple):
    """What a program works on."""

    at: Any
    inside: Any
    share: Any  # of the guidance
    temperature: Any
    shift: Any  # the largest mixed logit
    top: Any  # the largest logit that is made
    held: Any  # the logits that are made, where a tile holds them whole


class Cut(NamedTuple):
    """The last class that is kept, and its logit as an integer."""

    key: Any
    last: Any


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
def is_kept(x, classes, cut):
    """Return which classes come no later than the cut's."""
    key, at = key_of(x), on_tile(cut.key)
    return (key > at) | ((key == at) & (classes <= on_tile(cut.last)))


@triton.jit
def mixed(a, rows, classes, FAR: tl.constexpr, REAL: tl.constexpr):
    """Return guided logits, -inf where there is no class.

    The interpolation starts from the end that is not FAR, so that it is exact at both.
    """
    at = on_tile(rows.at) * a.num_classes + classes
    inside = on_tile(rows.inside) & (classes < a.num_classes)
    x = tl.load(a.logits + at, mask=inside, other=float("-inf")).to(REAL)
    if a.unconditional is not None:
        other = tl.load(a.unconditional + at, mask=inside, other=float("-inf")).to(REAL)
        forbidden = (x == float("-inf")) | (other == float("-inf"))
        start = x if FAR else other
        x = tl.where(forbidden, float("-inf"), start + rows.share * (x - other))
    return x


@triton.jit
def made(
    a, rows, classes, FAR: tl.constexpr, DIVIDES: tl.constexpr, WHOLE: tl.constexpr,
    REAL: tl.constexpr,
):  # fmt: skip
    """Return the logits before any cut."""
    if WHOLE:
        return rows.held
    else:
        x = mixed(a, rows, classes, FAR, REAL)
        if DIVIDES:
            x = (x - on_tile(rows.shift)) / rows.temperature
        return x


@triton.jit
def weigh(
    a, rows, before, cut, BY_MASS: tl.constexpr, FAR: tl.constexpr, DIVIDES: tl.constexpr,
    WHOLE: tl.constexpr, REAL: tl.constexpr,
    ROWS: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """Return what an earlier cut and this one keep: its weight in float64, and its least key.

    And the largest key of what this one does not keep.
    """
    total = tl.zeros([ROWS], tl.float64)
    least = key_of(tl.full([ROWS], float("inf"), REAL))
    most = key_of(tl.full([ROWS], float("-inf"), REAL))
    for start in range(0, a.num_classes, HIGH * LOW):
        classes = classes_from(start, ROWS, HIGH, LOW)
        x = made(a, rows, classes, FAR, DIVIDES, WHOLE, REAL)
        is_class = is_kept(x, classes, before) & (classes < a.num_classes)
        kept = is_class & is_kept(x, classes, cut)
        weight = tl.full([HIGH, ROWS, LOW], 1.0, REAL)
        if BY_MASS:
            weight = exp(x - on_tile(rows.top))
        total += row_sum(tl.where(kept, weight, 0.0)).to(tl.float64)
        key = key_of(x)
        least = tl.minimum(least, -row_max(tl.where(kept, -key, on_tile(-least))))
        most = tl.maximum(most, row_max(tl.where(is_class & (kept == 0), key, on_tile(most))))
    return total, least, most


@triton.jit
def classes_of(
    a, rows, key, FAR: tl.constexpr, DIVIDES: tl.constexpr, WHOLE: tl.constexpr,
    REAL: tl.constexpr, ROWS: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """Return the first and the last class of a key."""
    first = tl.full([ROWS], a.num_classes, tl.int32)
    last = tl.zeros([ROWS], tl.int32)
    for start in range(0, a.num_classes, HIGH * LOW):
        classes = classes_from(start, ROWS, HIGH, LOW)
        x = made(a, rows, classes, FAR, DIVIDES, WHOLE, REAL)
        equal = (key_of(x) == on_tile(key)) & (classes < a.num_classes)
        first = tl.minimum(first, -row_max(tl.where(equal, -classes, on_tile(-first))))
        last = tl.maximum(last, row_max(tl.where(equal, classes, 0)))
    return first, last


@triton.jit
def find_cut(
    a, rows, before, share, BY_MASS: tl.constexpr, FAR: tl.constexpr, DIVIDES: tl.constexpr,
    WHOLE: tl.constexpr, REAL: tl.constexpr,
    ROWS: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """Return the first cut whose weight reaches the target: share, by mass times that of all.

    Each turn takes a bound to the next logit of the row.
    """
    everything = tl.full([ROWS], a.num_classes, tl.int32)
    low = key_of(tl.full([ROWS], float("-inf"), REAL))
    high = key_of(rows.top)
    target = tl.full([ROWS], share, tl.float64)
    if BY_MASS:
        total, least, most = weigh(
            a, rows, before, Cut(low, everything), BY_MASS, FAR, DIVIDES, WHOLE, REAL,
            ROWS, HIGH, LOW,
        )  # fmt: skip
        target *= total
    while tl.max((low < high).to(tl.int32), axis=0) > 0:
        middle = (low | high) - ((low ^ high) >> 1)  # half of the sum, rounded up
        total, least, most = weigh(
            a, rows, before, Cut(middle, everything), BY_MASS, FAR, DIVIDES, WHOLE, REAL,
            ROWS, HIGH, LOW,
        )  # fmt: skip
        goes_on, reached = low < high, total >= target
        low = tl.where(goes_on & reached, least, low)
        high = tl.where(goes_on & (reached == 0), most, high)
    first, last = classes_of(a, rows, low, FAR, DIVIDES, WHOLE, REAL, ROWS, HIGH, LOW)
    while tl.max((first < last).to(tl.int32), axis=0) > 0:
        middle = (first + last) // 2
        total, least, most = weigh(
            a, rows, before, Cut(low, middle), BY_MASS, FAR, DIVIDES, WHOLE, REAL, ROWS, HIGH, LOW
        )
        goes_on, reached = first < last, total >= target
        last = tl.where(goes_on & reached, middle, last)
        first = tl.where(goes_on & (reached == 0), middle + 1, first)
    return Cut(low, last)


@triton.jit
def shape_rows(
    a, share: tl.float64, temperature: tl.float64, top_k, top_p: tl.float64,
    FAR: tl.constexpr, DIVIDES: tl.constexpr, COUNTS: tl.constexpr, BY_MASS: tl.constexpr,
    WHOLE: tl.constexpr, REAL: tl.constexpr,
    ROWS: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """Write the shaped logits: COUNTS and BY_MASS say which cuts are made."""
    at = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = at < a.num_tokens
    share = tl.full([1, 1, 1], share, REAL)
    temperature = tl.full([1, 1, 1], temperature, REAL)
    # The least number, not -inf: a row of nothing but -inf keeps them.
    top = tl.full([ROWS], -1.7976931348623157e308 if REAL == tl.float64 else -3.4028235e38, REAL)
    rows = Rows(at, inside, share, temperature, top, top, top)
    for start in range(0, a.num_classes, HIGH * LOW):
        top = tl.maximum(
            top, row_max(mixed(a, rows, classes_from(start, ROWS, HIGH, LOW), FAR, REAL))
        )
    shift = top
    if DIVIDES:
        top = tl.zeros([ROWS], REAL)
    rows = Rows(at, inside, share, temperature, shift, top, top)
    if WHOLE:
        classes = classes_from(0, ROWS, HIGH, LOW)
        held = made(a, rows, classes, FAR, DIVIDES, False, REAL)
        rows = Rows(at, inside, share, temperature, shift, top, held)

    everything = Cut(
        key_of(tl.full([ROWS], float("-inf"), REAL)), tl.full([ROWS], a.num_classes, tl.int32)
    )
    by_count = everything
    if COUNTS:
        by_count = find_cut(
            a, rows, everything, top_k, False, FAR, DIVIDES, WHOLE, REAL, ROWS, HIGH, LOW
        )
    by_mass = everything
    if BY_MASS:
        by_mass = find_cut(
            a, rows, by_count, top_p, True, FAR, DIVIDES, WHOLE, REAL, ROWS, HIGH, LOW
        )
    for start in range(0, a.num_classes, HIGH * LOW):
        classes = classes_from(start, ROWS, HIGH, LOW)
        x = made(a, rows, classes, FAR, DIVIDES, WHOLE, REAL)
        if COUNTS or BY_MASS:
            kept = is_kept(x, classes, by_count) & is_kept(x, classes, by_mass)
            x = tl.where(kept, x, float("-inf"))
        writes = on_tile(inside) & (classes < a.num_classes)
        tl.store(a.out + on_tile(at) * a.num_classes + classes, x, mask=writes)


def shaped_logits(
    logits: Tensor,
    unconditional: Tensor | None,
    guidance: float,
    temperature: float,
    top_k: int,
    top_p: float,
) -> Tensor:
    """Return the shaped logits, of the type of the calculation."""
    real = torch.float64 if logits.dtype == torch.float64 else torch.float32
    out = torch.empty_like(logits, dtype=real)
    num_classes = logits.shape[-1]
    num_tokens = logits.numel() // num_classes
    far = abs(guidance) >= 0.5
    tile = tile_of(num_classes, logits.dtype, copies=2)
    launch(
        shape_rows, triton.cdiv(num_tokens, tile.rows), logits,
        Arguments(logits, unconditional, out, num_tokens, num_classes),
        guidance - 1 if far else guidance, temperature, top_k, top_p,
        far, temperature != 1, top_k < num_classes, top_p < 1,
        tile.num_classes >= num_classes, triton_type(real),
        tile.rows, tile.high, tile.low, num_warps=tile.num_warps,
    )  # fmt: skip
    return out
