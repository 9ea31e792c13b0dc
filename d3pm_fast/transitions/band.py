"""The band-diagonal chain: a token moves between ordered values, within a width."""

from functools import partial

import torch
from torch import Tensor

from .._arrays import ArrayLike, check_probabilities
from .._checks import check_count
from .._loadable import loadable
from ..chains import MEMORY_BUDGET, DenseTransition, Products
from ..chains.toeplitz import check_width, toeplitz, toeplitz_chain

__all__ = ["band"]


def band(
    num_classes: int, betas: ArrayLike, width: int, *, memory_budget: int = MEMORY_BUDGET
) -> DenseTransition:
    """Return ``Q_t[i, j] = beta_t / K`` for ``0 < |i - j| <= width``, the rest on the diagonal.

    Symmetric and doubly stochastic: its limit is uniform. With ``width = K - 1`` it is the
    uniform chain.

    Source: D3PM, appendix A.2.5, eq. 10.

    Args:
        num_classes: K, at least 2.
        betas: ``(T,)``, see :mod:`d3pm_fast.schedules`.
        width: the longest move, 1..K-1.
        memory_budget: bytes that products of the chain may take.

    Raises:
        ValueError: fewer than 2 classes, betas outside [0, 1], or a width outside 1..K-1.
    """
    num_classes = check_count("num_classes", num_classes, least=2)
    width = check_width("width", width, num_classes)
    betas = check_probabilities("betas", betas)
    step = partial(_band_step, num_classes, betas, width)
    return toeplitz_chain("band", Products(step, num_classes, len(betas), memory_budget))


@loadable
def _band_step(num_classes: int, betas: Tensor, width: int, t: int) -> Tensor:
    beta = betas[t - 1]
    move = torch.zeros(num_classes - 1, dtype=torch.float64, device="cpu")
    move[:width] = beta / num_classes
    place = torch.arange(num_classes, device="cpu")
    moves = place.clamp(max=width) + place.flip(0).clamp(max=width)
    return toeplitz(move, (1 - beta) + beta * (num_classes - moves) / num_classes)
