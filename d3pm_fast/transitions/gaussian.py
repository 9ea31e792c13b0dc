"""Chains that move between neighbouring values: discretized Gaussian and band-diagonal."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .._checks import ArrayLike, check_count, check_probabilities
from .._loadable import loadable
from .dense import DenseTransition
from .products import MEMORY_BUDGET, Products

__all__ = ["band", "discretized_gaussian"]


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
    band_limit = _check_width("band_limit", band_limit, num_classes)
    betas = check_probabilities("betas", betas)
    log_weights = partial(_log_weights, num_classes, betas, band_limit)
    step, log_step = partial(_gaussian_step, log_weights), partial(_log_gaussian_step, log_weights)
    matrices = Products(step, num_classes, len(betas), memory_budget, log_step)
    return _chain("discretized_gaussian", matrices)


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
    width = _check_width("width", width, num_classes)
    betas = check_probabilities("betas", betas)
    step = partial(_band_step, num_classes, betas, width)
    return _chain("band", Products(step, num_classes, len(betas), memory_budget))


def _chain(family: str, matrices: Products) -> DenseTransition:
    k = matrices.num_classes
    law = torch.full((k,), 1 / k, dtype=torch.float64, device="cpu")
    return DenseTransition(family, matrices, law)


def _check_width(name: str, value: int, num_classes: int) -> int:
    width = check_count(name, value)
    if width >= num_classes:
        raise ValueError(f"{name} must be at most K - 1 = {num_classes - 1}, got {width}")
    return width


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
    return _toeplitz(off_diagonal, diagonal.log()) - total.log()


@loadable
def _gaussian_step(log_weights: Callable[[int], Tensor], t: int) -> Tensor:
    weights = log_weights(t).exp()
    diagonal, total = _diagonal_and_total(weights)
    return _toeplitz(weights, diagonal) / total


def _diagonal_and_total(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the diagonal and the whole sum over n, before one is divided by the other."""
    # What a row lacks of the whole sum lies beyond its ends: tails[m] = w(m + 1) + w(m + 2) + ...
    tails = torch.cat([weights.flip(0).cumsum(0).flip(0), weights.new_zeros(1)])
    return 1 + tails + tails.flip(0), 1 + 2 * weights.sum()


@loadable
def _band_step(num_classes: int, betas: Tensor, width: int, t: int) -> Tensor:
    beta = betas[t - 1]
    move = torch.zeros(num_classes - 1, dtype=torch.float64, device="cpu")
    move[:width] = beta / num_classes
    place = torch.arange(num_classes, device="cpu")
    moves = place.clamp(max=width) + place.flip(0).clamp(max=width)
    return _toeplitz(move, (1 - beta) + beta * (num_classes - moves) / num_classes)


def _toeplitz(off_diagonal: Tensor, diagonal: Tensor) -> Tensor:
    """Return the matrix of ``off_diagonal[|i - j| - 1]`` with this diagonal."""
    place = torch.arange(len(diagonal), device="cpu")
    distance = (place[:, None] - place).abs()
    matrix = torch.cat([diagonal[:1], off_diagonal])[distance]
    matrix.diagonal().copy_(diagonal)
    return matrix
