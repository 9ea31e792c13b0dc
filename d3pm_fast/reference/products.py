"""Cumulative products of transition matrices (D3PM, eq. 3)."""

import torch
from torch import Tensor


def cumulative_products(matrices: Tensor) -> Tensor:
    """Return ``Q_1 ... Q_t`` for every t, ``(T, K, K)``."""
    products: list[Tensor] = []
    for matrix in matrices:
        products.append(products[-1] @ matrix if products else matrix)
    return torch.stack(products) if products else matrices.clone()
