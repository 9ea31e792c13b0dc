"""Draw ``x_t ~ q(x_t | x_0) = Qbar_t[x_0, :]`` (D3PM, eq. 3)."""

from typing import Any

import torch
from torch import Tensor

from ..chains.structures import DenseMarginal, RankOneMarginal, SparseMarginal
from ..records import Random
from .draws import NONE, draw_base
from .logspace import spread
from .philox import uniforms_of


def q_sample(x0: Tensor, marginal: Any, random: Random) -> Tensor:
    """Return a draw from row x_0 of ``Qbar_t``, int64 ``(B, *S)``; ``NONE`` for a bad index."""
    draw = _DRAWS[type(marginal)]
    drawn: Tensor = draw(x0, marginal, random)
    return drawn


def _trusted(
    x0: Tensor, t: Tensor, num_classes: int, last_time: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x_0 and the time of each token, 0 where one is bad, and which tokens are good."""
    t = spread(t, x0.shape)
    good = (x0 >= 0) & (x0 < num_classes) & (t >= 0) & (t <= last_time)
    return x0.where(good, 0), t.where(good, 0), good


def _from_mixture(x0: Tensor, marginal: RankOneMarginal, random: Random) -> Tensor:
    """Draw from ``A I + 1 (W pi + M e_mask)^T``.

    One number chooses between keeping x_0 (A), pi (W) and the mask (M), the other draws
    from pi.
    """
    rows, table, pi_cdf, mask_id, num_classes = marginal
    x0, rows, good = _trusted(x0, rows, num_classes, len(table) - 1)
    choice, draw = (u.view(x0.shape) for u in uniforms_of(random, x0.numel()))
    keep, base, _ = table[rows].unbind(-1)
    redrawn = draw_base(draw, pi_cdf, num_classes)
    moved = redrawn.where((choice < keep + base) | (mask_id < 0), mask_id)
    return x0.where(choice < keep, moved).where(good, NONE)


def _by_inverse_cdf(x0: Tensor, marginal: DenseMarginal, random: Random) -> Tensor:
    chain = marginal.chain
    x0, t, good = _trusted(x0, marginal.t, chain.num_classes, chain.last_time)
    _, draw = (u.view(x0.shape) for u in uniforms_of(random, x0.numel()))
    drawn = torch.empty_like(x0)
    for time in t.unique().tolist():
        here = t == time
        cdf = chain.cdf(time)[x0[here]]
        found = torch.searchsorted(cdf, draw[here].unsqueeze(-1), right=True)
        drawn[here] = found.squeeze(-1)
    return drawn.where(good, NONE)


def _by_jumps(x0: Tensor, marginal: SparseMarginal, random: Random) -> Tensor:
    """Draw the number of jumps up to t, and the class that each leads to."""
    chain = marginal.chain
    x, t, good = _trusted(x0, marginal.t, chain.num_classes, chain.last_time)
    _, draw = (u.view(x.shape) for u in uniforms_of(random, x.numel()))
    counts = torch.empty_like(x)
    for time in t.unique().tolist():
        here = t == time
        counts[here] = torch.searchsorted(chain.jumps_cdf(time), draw[here], right=True)
    starts, targets, cdf = chain.jump_rows()
    x = x.clone()
    for jump in range(1, max(counts.flatten().tolist(), default=0) + 1):
        here = counts >= jump
        _, number = (u.view(x.shape) for u in uniforms_of(random, x.numel(), jump))
        for place in here.nonzero().tolist():
            row = slice(*starts[x[tuple(place)] :][:2].tolist())
            found = torch.searchsorted(cdf[row], number[tuple(place)], right=True)
            x[tuple(place)] = targets[row][found]
    return x.where(good, NONE)


_DRAWS: dict[type, Any] = {
    RankOneMarginal: _from_mixture,
    DenseMarginal: _by_inverse_cdf,
    SparseMarginal: _by_jumps,
}
