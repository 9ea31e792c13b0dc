"""Draw ``x_t ~ q(x_t | x_0) = Qbar_t[x_0, :]`` (D3PM, eq. 3)."""

import torch
from torch import Tensor

from ..chains import DenseTransition, RankOneTransition, SparseTransition, Transition
from .draws import NONE, draw_base
from .logspace import spread
from .philox import uniforms


def q_sample(x: Tensor, transition: Transition, t: Tensor, seeds: Tensor, step: int) -> Tensor:
    """Return a draw from row x of ``Qbar_t``, int64 ``(B, *S)``; ``NONE`` where an index is bad."""
    choice, draw = (u.view(x.shape) for u in uniforms(seeds, step, x.numel()))
    t = spread(t, x.shape)
    good = (x >= 0) & (x < transition.num_classes) & (t >= 0) & (t <= transition.num_steps)
    x, t = x.where(good, 0), t.where(good, 0)
    return _draw(x, transition, t, choice, draw, seeds, step).where(good, NONE)


def _draw(
    x: Tensor,
    transition: Transition,
    t: Tensor,
    choice: Tensor,
    draw: Tensor,
    seeds: Tensor,
    step: int,
) -> Tensor:
    if isinstance(transition, RankOneTransition):
        return _from_mixture(x, transition, t, choice, draw)
    if isinstance(transition, SparseTransition):
        return _by_jumps(x, transition, t, draw, seeds, step)
    assert isinstance(transition, DenseTransition)
    drawn = torch.empty_like(x)
    for time in t.unique().tolist():
        here = t == time
        cdf = transition.cdf(time)[x[here]]
        found = torch.searchsorted(cdf, draw[here].unsqueeze(-1), right=True)
        drawn[here] = found.squeeze(-1)
    return drawn


def _from_mixture(
    x: Tensor, transition: RankOneTransition, t: Tensor, choice: Tensor, draw: Tensor
) -> Tensor:
    """Draw from ``A I + 1 (W base + M e_mask)^T``.

    One number chooses between keeping x (A), the base (W) and the mask (M), the other draws
    from the base.
    """
    keep, base, _ = transition.products[t].unbind(-1)
    mask_id = transition.mask_id
    redrawn = draw_base(draw, transition.base_cdf, transition.num_classes)
    return x.where(choice < keep, redrawn.where((choice < keep + base) | (mask_id < 0), mask_id))


def _by_jumps(
    x: Tensor, transition: SparseTransition, t: Tensor, draw: Tensor, seeds: Tensor, step: int
) -> Tensor:
    """Draw the number of jumps up to t, and the class that each leads to."""
    counts = torch.empty_like(x)
    for time in t.unique().tolist():
        here = t == time
        counts[here] = torch.searchsorted(transition.jumps_cdf(time), draw[here], right=True)
    starts, targets, cdf = transition.jump_rows()
    x = x.clone()
    for jump in range(1, max(counts.flatten().tolist(), default=0) + 1):
        here = counts >= jump
        _, number = (u.view(x.shape) for u in uniforms(seeds, step, x.numel(), jump))
        for place in here.nonzero().tolist():
            row = slice(*starts[x[tuple(place)] :][:2].tolist())
            found = torch.searchsorted(cdf[row], number[tuple(place)], right=True)
            x[tuple(place)] = targets[row][found]
    return x
