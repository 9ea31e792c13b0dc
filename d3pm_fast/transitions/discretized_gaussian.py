"""The discretized Gaussian chain: a token moves between ordered values, near ones mostly."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .._arrays import ArrayLike, check_probabilities
from .._checks import check_count
from .._loadable import loadable
from ..chains import MEMORY_BUDGET, DenseTransition, Products
from ..chains.toeplitz import check_width, toeplitz, toeplitz_chain

__all__ = ["discretized_gaussian"]


def discretized_gaussian(
    num_classes: int,
    betas: ArrayLike,
    *,
    band_limit: int | None = None,
    memory_budget: int = MEMORY_BUDGET,
) -> DenseTransition:
    """Return the chain of a Gaussian kernel on K ordered values.

    Off the diagonal ``Q_t[i, j] = w(i - j) / sum_n w(n)``, ``w(n) = exp(-4 n^2 / ((K-1)^2
    beta_t))`` and n over ``-(K-1) .. K-1``; the diagonal is what is left of the row. The values
    span an interval of length 2 whatever K is (the published code has that for K = 256 alone).
    Symmetric and doubly stochastic: its limit is uniform.

    Source: D3PM, appendix A.2.3, eq. 8; the band limit is the published code's.

    Args:
        num_classes: K, at least 2.
        betas: ``(T,)``, see :func:`d3pm_fast.schedules.linear`; a beta of 0 moves nothing.
        band_limit: the longest move, 1..K-1; w is 0 beyond it, in the sum over n too.
        memory_budget: bytes that products of the chain may take.

    Raises:
        ValueError: fewer than 2 classes, betas outside [0, 1], or a band limit outside 1..K-1.
    """
    num_classes = check_count("num_classes", num_classes, least=2)
    if band_limit is None:
        band_limit = num_classes - 1
    band_limit = check_width("band_limit", band_limit, num_classes)
    betas = check_probabilities("betas", betas)
    log_weights = partial(_log_weights, num_classes, betas, band_limit)
    step, log_step = partial(_gaussian_step, log_weights), partial(_log_gaussian_step, log_weights)
    matrices = Products(step, num_classes, len(betas), memory_budget, log_step)
    return toeplitz_chain("discretized_gaussian", matrices)


@loadable
def _log_weights(num_classes: int, betas: Tensor, band_limit: int, t: int) -> Tensor:
    """Return ``log w(n)`` for n = 1..K-1."""
    n = torch.arange(1, num_classes, dtype=torch.float64, device="cpu")
    log_weights = -4 * n.square() / ((num_classes - 1) ** 2 * betas[t - 1])
    log_weights[band_limit:] = -torch.inf
    return log_weights


@loadable
def _log_gaussian_step(log_weights: Callable[[int], Tensor], t: int) -> Tensor:
    off_diagonal = log_weights(t)
    diagonal, total = _diagonal_and_total(off_diagonal.exp())
    return toeplitz(off_diagonal, diagonal.log()) - total.log()


@loadable
def _gaussian_step(log_weights: Callable[[int], Tensor], t: int) -> Tensor:
    weights = log_weights(t).exp()
    diagonal, total = _diagonal_and_total(weights)
    return toeplitz(weights, diagonal) / total


def _diagonal_and_total(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the diagonal and the whole sum over n, before one is divided by the other."""
    # What a row lacks of the whole sum lies beyond its ends: tails[m] = w(m + 1) + w(m + 2) + ...
    tails = torch.cat([weights.flip(0).cumsum(0).flip(0), weights.new_zeros(1)])
    return 1 + tails + tails.flip(0), 1 + 2 * weights.sum()
