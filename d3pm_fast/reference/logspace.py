"""Shapes, dtypes and sums in log space that all operations share."""

import torch
from torch import Tensor
from torch.nn.functional import pad, softplus


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype to calculate in: float64 for float64, float32 for the rest."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def spread(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Repeat one value an item, ``(B,)``, for the item's positions; ``(B, *S)`` stays."""
    return values.reshape(*values.shape, *(1,) * (len(shape) - values.ndim)).expand(shape)


def log_add_exp(x: Tensor, y: Tensor) -> Tensor:
    """Return ``log(exp(x) + exp(y))``; two -inf give -inf, with a gradient of zero.

    Derivatives of all orders are finite, which those of ``torch.logaddexp`` are not where one of
    the two is far below the other.
    """
    nothing = (x == -torch.inf) & (y == -torch.inf)
    high, low = x.where(x > y, y), y.where(x > y, x)
    below = (low - high).masked_fill(nothing, 0)
    total = high + softplus(below, threshold=1000)  # above it linear, which nothing here is
    return total.masked_fill(nothing, -torch.inf)


def log_sum_exp(x: Tensor, dim: int) -> Tensor:
    """Return ``log sum exp(x)``; nothing but -inf gives -inf, with a gradient of zero."""
    nothing = (x == -torch.inf).all(dim, keepdim=True)
    return x.masked_fill(nothing, 0).logsumexp(dim).masked_fill(nothing.squeeze(dim), -torch.inf)


def whole(logits: Tensor, num_classes: int) -> Tensor:
    """Return logits of all classes, -inf for the last one where it is left out."""
    return logits if logits.shape[-1] == num_classes else pad(logits, (0, 1), value=-torch.inf)


def without(logits: Tensor, forbidden: int) -> Tensor:
    """Return logits of all classes, -inf for one of them."""
    classes = torch.arange(logits.shape[-1], device=logits.device)
    return logits.masked_fill(classes == forbidden, -torch.inf)


def filled(logits: Tensor, num_classes: int, forbidden: int) -> Tensor:
    """Return logits of all classes, -inf for one of them, which may be left out if it is last."""
    if logits.shape[-1] == num_classes:
        return without(logits, forbidden)
    return whole(logits, num_classes)


def at(values: Tensor, index: Tensor) -> Tensor:
    """Return ``values[n, index[n]]`` for every token n, ``(B, *S, 1)``."""
    return values.gather(-1, index.unsqueeze(-1))
