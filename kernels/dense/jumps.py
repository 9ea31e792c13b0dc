"""Draws ``x_t ~ q(x_t | x_0)`` of sparse chains: how many jumps up to t, and where each leads."""

from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ...chains import SparseTransition
from ...chains.structures import SparseMarginal
from ...records import Random
from ..common.launch import launch
from ..common.random import NONE, first_above, random_of, uniforms

BLOCK = 256


class Counts(NamedTuple):
    """The laws of the number of jumps up to some times."""

    which: Any  # the time of every run of tokens
    run_length: Any
    cdf: Any  # (times, most) float64; NaN for a time that there is not
    most: Any


class Jumps(NamedTuple):
    """The rows of P, one after the other."""

    starts: Any  # (K + 1,)
    targets: Any
    cdf: Any  # float64, of each row
    num_classes: Any


@triton.jit
def walk(
    x_at, out, counts, jumps, random, num_tokens,
    COUNT_STEPS: tl.constexpr, JUMP_STEPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Take every token as many jumps as its uniform says."""
    tokens = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = tokens < num_tokens
    x = tl.load(x_at + tokens, mask=inside, other=0)
    cdf = counts.cdf + counts.most * tl.load(
        counts.which + tokens // counts.run_length, mask=inside, other=0
    )
    none = tl.load(cdf, mask=inside, other=0.0)  # the probability of no jump
    good = inside & (none == none) & (x >= 0) & (x < jumps.num_classes)
    _, draw = uniforms(random, tokens, inside)
    zero = tl.zeros_like(tokens)
    count = first_above(draw, cdf, zero, zero + counts.most, COUNT_STEPS)
    count = tl.where(good, count, 0)
    for jump in range(1, tl.max(count, axis=0) + 1):
        goes = jump <= count
        _, draw = uniforms(random, tokens, inside, jump)
        first = tl.load(jumps.starts + x, mask=goes, other=0)
        last = tl.load(jumps.starts + x + 1, mask=goes, other=0)
        found = first_above(draw, jumps.cdf, first, last, JUMP_STEPS)
        x = tl.where(goes, tl.load(jumps.targets + found, mask=goes, other=0), x)
    tl.store(out + tokens, tl.where(good, x, NONE), mask=inside)


def draw_by(x: Tensor, counts: Counts, jumps: Jumps, longest: int, random: Random) -> Tensor:
    """Return a draw for each token, from rows of P of at most ``longest`` entries."""
    out = torch.empty_like(x)
    launch(
        walk, triton.cdiv(x.numel(), BLOCK), x, x, out, counts, jumps,
        random_of(random, x.numel()), x.numel(),
        counts.most.bit_length(), longest.bit_length(), BLOCK, num_warps=4,
    )  # fmt: skip
    return out


_rows: WeakKeyDictionary[SparseTransition, dict[torch.device, tuple[Jumps, int]]]
_rows = WeakKeyDictionary()


def jumps_on(transition: SparseTransition, device: torch.device) -> tuple[Jumps, int]:
    """Return the rows of P on a device, where they stay, and how many entries the longest has."""
    found = _rows.setdefault(transition, {})
    if device not in found:
        starts, targets, cdf = transition.jump_rows()
        rows = (part.to(device) for part in (starts, targets.long(), cdf))
        found[device] = Jumps(*rows, transition.num_classes), int(starts.diff().max())
    return found[device]


def by_jumps(x0: Tensor, marginal: SparseMarginal, random: Random) -> Tensor:
    """Return a draw for each token; the times come to the host, where their laws are."""
    if x0.numel() == 0:
        return torch.empty_like(x0)
    chain = marginal.chain
    times, which = marginal.t.unique(return_inverse=True)
    never = torch.full((1,), torch.nan, dtype=torch.float64)
    laws = [
        chain.jumps_cdf(time) if 0 <= time <= chain.num_steps else never for time in times.tolist()
    ]
    cdf = pad_sequence(laws, batch_first=True, padding_value=1.0).to(x0.device)
    counts = Counts(which, x0.numel() // which.numel(), cdf, cdf.shape[1])
    return draw_by(x0, counts, *jumps_on(chain, x0.device), random)
