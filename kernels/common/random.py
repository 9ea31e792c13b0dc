"""A token's random numbers, the same as in ``csrc/sampling.h``, and draws from pi."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ...records import Random, TokenRandom
from .runs import run_of, runs_of

NONE = tl.constexpr(-1)  # the class of a draw from what is no law: out of range wherever it goes


class Counter(NamedTuple):
    """The seeds, the counter of the step in two halves, and where positions begin."""

    seeds: Any  # int64, of each run
    runs: Any
    step_low: Any
    step_high: Any
    position_offset: Any


class TokenCounter(NamedTuple):
    """Seed and position of each token, and the counter of the step in two halves."""

    seeds: Any
    positions: Any
    step_low: Any
    step_high: Any


def random_of_tokens(random: TokenRandom) -> TokenCounter:
    """Return what a kernel takes for the random numbers of any tokens."""
    seeds, positions, step = random
    return TokenCounter(seeds, positions, step & 0xFFFFFFFF, step >> 32)


def random_of(random: Random, num_tokens: int) -> Counter:
    """Return what a kernel takes for its random numbers."""
    seeds, step, offset = random
    runs = runs_of(num_tokens, len(seeds))
    return Counter(seeds, runs, step & 0xFFFFFFFF, step >> 32, offset)


@triton.jit
def uniforms(random, tokens, inside, pair=0):
    """Return two independent float64 uniforms in [0, 1) for each token, 53 bits each.

    A token has more than one pair where it jumps more than once.
    """
    run = run_of(tokens, random.runs)
    seed = tl.load(random.seeds + run, mask=inside, other=0)
    position = tokens - run.to(tl.int64) * random.runs.length + random.position_offset
    return uniforms_at(seed, position, random, pair)


@triton.jit
def uniforms_at(seed, position, random, pair):
    """Return those of a seed and a position in its item."""
    position = (position + ((tl.zeros_like(position) + pair) << 40)).to(tl.uint64)
    zero = tl.zeros_like(position)
    low, high = zero + random.step_low, zero + random.step_high
    w0, w1, w2, w3 = tl.philox(
        seed,
        position.to(tl.uint32),
        (position >> 32).to(tl.uint32),
        low.to(tl.uint32),
        high.to(tl.uint32),
    )
    return to_unit(w0, w1), to_unit(w2, w3)


@triton.jit
def to_unit(low, high):
    """Return a uniform from two words."""
    bits = (high.to(tl.uint64) << 21) | (low.to(tl.uint64) >> 11)
    return bits.to(tl.float64) * (1.0 / 9007199254740992.0)


@triton.jit
def draw_base(draw, of):
    """Return the class in which a uniform falls, ``cdf[j - 1] <= draw < cdf[j]``.

    ``of`` has the cdf, None where all classes are alike, and the number of STEPS that halve
    num_classes to nothing.
    """
    if of.cdf is None:
        return (draw * of.num_classes).to(tl.int64)
    else:
        first = tl.zeros_like(draw).to(tl.int64)
        return first_above(draw, of.cdf, first, first + of.num_classes, of.STEPS)


@triton.jit
def first_above(draw, cdf, first, last, STEPS: tl.constexpr):
    """Return the first place in [first, last) where a cdf is above a uniform, else last.

    STEPS halve the places to nothing.
    """
    for _ in range(STEPS):
        middle = (first + last) // 2
        searches = first < last
        below = tl.load(cdf + middle, mask=searches, other=0.0) <= draw
        last = tl.where(searches & (below == 0), middle, last)
        first = tl.where(searches & below, middle + 1, first)
    return first
