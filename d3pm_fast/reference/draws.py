"""Classes from uniform numbers, by inverse CDF."""

import torch
from torch import Tensor


def draw_base(draw: Tensor, pi_cdf: Tensor | None, num_classes: int) -> Tensor:
    """Return the class in which the uniform ``draw`` falls, int64; None: all are alike."""
    if pi_cdf is None:
        return (draw * num_classes).long()
    return torch.searchsorted(pi_cdf, draw, right=True)


NONE = -1  # the class of a draw from what is no law: out of range wherever it goes


def draw_row(weights: Tensor, draw: Tensor) -> Tensor:
    """Return a class from each row of weights ``(B, *S, K)``, int64 ``(B, *S)``.

    ``NONE`` where the weights have no sum above 0, or NaN among them.
    """
    running = weights.cumsum(-1)
    # A product that rounds up to the sum itself belongs to the last class that has any mass.
    last = (weights > 0).long().cumsum(-1).argmax(-1)
    found = torch.searchsorted(running, (draw.unsqueeze(-1) * running[..., -1:]), right=True)
    return found.squeeze(-1).minimum(last).where(running[..., -1] > 0, NONE)
