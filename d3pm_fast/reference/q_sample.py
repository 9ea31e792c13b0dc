"""Draw ``x_t ~ q(x_t | x_0) = Qbar_t[x_0, :]`` (D3PM, eq. 3) as a mixture."""

import torch
from torch import Tensor

from .philox import uniforms
from .rank_one import spread


def q_sample(
    x: Tensor,
    rows: Tensor,
    table: Tensor,
    base_cdf: Tensor | None,
    mask_id: int,
    num_classes: int,
    seeds: Tensor,
    step: int,
) -> Tensor:
    """Return a draw from row x of ``A I + 1 (W base + M e_mask)^T``, int64 ``(B, *S)``.

    One number chooses between keeping x (A), the base (W) and the mask (M), the other draws
    from the base. ``table`` holds ``A, W, M``.
    """
    choice, draw = (u.view(x.shape) for u in uniforms(seeds, step, x.numel()))
    keep, base, _ = table[spread(rows, x.shape)].unbind(-1)
    redrawn = draw_base(draw, base_cdf, num_classes)
    return x.where(choice < keep, redrawn.where((choice < keep + base) | (mask_id < 0), mask_id))


def draw_base(draw: Tensor, base_cdf: Tensor | None, num_classes: int) -> Tensor:
    """Return the class in which the uniform ``draw`` falls, by inverse CDF, int64 ``(B, *S)``."""
    if base_cdf is None:
        return (draw * num_classes).long()
    return torch.searchsorted(base_cdf, draw, right=True)
