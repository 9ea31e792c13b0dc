"""Cumulative products of transition matrices, differentiable: for transitions that are learned."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ._checks import not_a_tensor

__all__ = ["cumulative_products"]

MOST_BLOCKED_CLASSES = 32  # up to here twice as many products cost less than T calls


def cumulative_products(matrices: Tensor) -> Tensor:
    """Return ``Qbar_t = Q_1 ... Q_t`` for t = 1..T (D3PM, eq. 3).

    Calculated in float64 and rounded once. The backward pass keeps nothing but the matrices and
    the result. A :class:`~d3pm_fast.transitions.DenseTransition`, which need not have all products
    at a time, keeps them within its ``memory_budget``.

    Args:
        matrices: ``(T, K, K)``, float64 or float32, ``[t - 1]`` is ``Q_t``.

    Returns:
        ``(T, K, K)`` in the dtype of the matrices, differentiable in them (once).

    Raises:
        TypeError: not a tensor, or of another dtype.
        ValueError: not of shape ``(T, K, K)``.
    """
    if not isinstance(matrices, Tensor):
        raise not_a_tensor("matrices", matrices)
    if matrices.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"matrices must be float32 or float64, got {matrices.dtype}")
    if matrices.ndim != 3 or matrices.shape[1] != matrices.shape[2]:
        raise ValueError(f"matrices must have shape (T, K, K), got {tuple(matrices.shape)}")
    return CumulativeProducts.apply(matrices)  # type: ignore[no-any-return, no-untyped-call]


class CumulativeProducts(torch.autograd.Function):
    """The products of all first t matrices."""

    @staticmethod
    def forward(ctx: Any, matrices: Tensor) -> Tensor:
        """Return the products."""
        products = _scan(matrices.double()).to(matrices.dtype)
        ctx.save_for_backward(matrices, products)
        return products

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        """Return ``Qbar_{t-1}^T A_t`` with ``A_t = upstream_t + A_{t+1} Q_{t+1}^T``."""
        matrices, products = (saved.double() for saved in ctx.saved_tensors)
        adjoint = upstream.double().clone()
        for t in range(len(matrices) - 2, -1, -1):
            adjoint[t] += adjoint[t + 1] @ matrices[t + 1].T
        adjoint[1:] = products[:-1].mT @ adjoint[1:]
        return adjoint.to(upstream.dtype)


def _scan(matrices: Tensor) -> Tensor:
    num_steps, num_classes, _ = matrices.shape
    if num_classes > MOST_BLOCKED_CLASSES or num_steps < 4:
        return _one_by_one(matrices.unsqueeze(0)).squeeze(0)
    length = math.isqrt(num_steps)
    whole = num_steps // length * length
    blocks = _one_by_one(matrices[:whole].unflatten(0, (-1, length)))
    before = _one_by_one(blocks[:-1, -1].unsqueeze(0)).squeeze(0)  # of all earlier blocks
    products = torch.cat([blocks[0], (before.unsqueeze(1) @ blocks[1:]).flatten(0, 1)])
    if whole == num_steps:
        return products
    rest = _one_by_one(matrices[whole:].unsqueeze(0)).squeeze(0)
    return torch.cat([products, products[-1] @ rest])


def _one_by_one(matrices: Tensor) -> Tensor:
    """Return the products along the second dimension of ``(N, T, K, K)``."""
    products = [matrices[:, 0]] if matrices.shape[1] else []
    for t in range(1, matrices.shape[1]):
        products.append(products[-1] @ matrices[:, t])
    return torch.stack(products, dim=1) if products else matrices
