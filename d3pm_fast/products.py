"""Cumulative products of transition matrices, differentiable: for transitions that are learned."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.func import vjp

from . import derivatives, reference
from ._checks import not_a_tensor
from .choices import Impl
from .ops import implementation
from .ops.products import scan_of

__all__ = ["cumulative_products"]

Scan = Callable[[Tensor, Tensor | None], Tensor]


def cumulative_products(matrices: Tensor, impl: Impl = "auto") -> Tensor:
    """Return ``Qbar_t = Q_1 ... Q_t`` for t = 1..T (D3PM, eq. 3).

    Calculated in float64 and rounded once. The backward pass keeps nothing but the matrices and
    the result. A :class:`~d3pm_fast.transitions.DenseTransition`, which need not have all products
    at a time, keeps them within its ``memory_budget``.

    Args:
        matrices: ``(T, K, K)``, float64 or float32, ``[t - 1]`` is ``Q_t``.
        impl: which implementation, see :func:`d3pm_fast.implementation`. More than 64 classes
            are multiplied by torch on any device.

    Returns:
        ``(T, K, K)`` in the dtype of the matrices, differentiable in them.

    Raises:
        TypeError: not a tensor, or of another dtype.
        ValueError: not of shape ``(T, K, K)``, or an implementation that cannot serve the device.
        RuntimeError: the implementation asked for is not installed.
    """
    if not isinstance(matrices, Tensor):
        raise not_a_tensor("matrices", matrices)
    if matrices.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"matrices must be float32 or float64, got {matrices.dtype}")
    if matrices.ndim != 3 or matrices.shape[1] != matrices.shape[2]:
        raise ValueError(f"matrices must have shape (T, K, K), got {tuple(matrices.shape)}")
    name = implementation(impl, matrices.device, operation="products_scan").name
    if name == "reference" or derivatives.are_asked(matrices):
        return _by_reference(matrices)
    arguments = matrices.contiguous(), scan_of(name, matrices.shape[-1])
    return CumulativeProducts.apply(*arguments)  # type: ignore[no-any-return, no-untyped-call]


def _by_reference(matrices: Tensor) -> Tensor:
    return reference.cumulative_products(matrices.double()).to(matrices.dtype)


class CumulativeProducts(torch.autograd.Function):
    """The products of all first t matrices."""

    @staticmethod
    def forward(ctx: Any, matrices: Tensor, scan: Scan) -> Tensor:
        """Return the products."""
        products = scan(matrices, None)
        ctx.save_for_backward(matrices, products)
        ctx.scan, ctx.is_compiled = scan, is_compiling()
        return products

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        """Return ``Qbar_{t-1}^T A_t`` with ``A_t = upstream_t + A_{t+1} Q_{t+1}^T``."""
        matrices, products = ctx.saved_tensors
        if torch.is_grad_enabled() and not ctx.is_compiled:
            (grad,) = vjp(_by_reference, matrices)[1](upstream)
            return grad, None
        adjoint = ctx.scan(matrices, upstream.contiguous())
        adjoint[1:] = products[:-1].mT.double() @ adjoint[1:]
        return adjoint.to(upstream.dtype), None
