"""Chains that move between neighbouring values, by as far as their distance says."""

import torch
from torch import Tensor

from .._checks import check_count
from .dense import DenseTransition
from .products import Products

__all__ = ["check_width", "toeplitz", "toeplitz_chain"]


def toeplitz_chain(family: str, matrices: Products) -> DenseTransition:
    """Return the chain of symmetric matrices, whose limit is uniform."""
    k = matrices.num_classes
    law = torch.full((k,), 1 / k, dtype=torch.float64, device="cpu")
    return DenseTransition(family, matrices, law)


def check_width(name: str, value: int, num_classes: int) -> int:
    """Return the longest move, 1..K-1."""
    width = check_count(name, value)
    if width >= num_classes:
        raise ValueError(f"{name} must be at most K - 1 = {num_classes - 1}, got {width}")
    return width


def toeplitz(off_diagonal: Tensor, diagonal: Tensor) -> Tensor:
    """Return the matrix of ``off_diagonal[|i - j| - 1]`` with this diagonal."""
    place = torch.arange(len(diagonal), device="cpu")
    distance = (place[:, None] - place).abs()
    matrix = torch.cat([diagonal[:1], off_diagonal])[distance]
    matrix.diagonal().copy_(diagonal)
    return matrix
