"""Sums and means of what there is of each token."""

import torch
from torch import Tensor

from .records import Weights


def reduced(
    tokens: Tensor, reduction: str, count: Tensor | int | None = None, with_terms: bool = False
) -> Tensor:
    """Return the losses ``(B, *S)`` themselves, or a reduction of them, of the same dtype.

    Args:
        tokens: the loss of each token, 0 where it does not count.
        reduction: ``"none"``, ``"batch"`` for the sums over positions, ``"sum"`` or ``"mean"``.
            The mean of no token is NaN, as that of ``F.cross_entropy``; its gradient is 0.
        count: how many tokens count, for the mean; None for all.
        with_terms: whether there is one axis more, ``(3,)``: of losses and their two terms.
    """
    if with_terms:
        parts = [reduced(part, reduction, count) for part in tokens.unbind(-1)]
        return torch.stack(parts, dim=-1)
    if reduction == "none":
        return tokens
    if reduction == "batch":
        return sum_positions(tokens)
    total = tokens.sum(dtype=torch.float64)
    if reduction == "mean":
        count = tokens.numel() if count is None else count
        if isinstance(count, Tensor):
            total = (total / count.clamp(min=1)).where(count > 0, torch.nan)
        else:
            total = total / count if count else total * torch.nan
    return total.to(tokens.dtype)


def at_least_one(count: Tensor | int) -> Tensor | int:
    """Return what a mean over so many tokens divides by."""
    return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)


def divided(weights: Weights, count: Tensor | int, tokens: Tensor, dtype: torch.dtype) -> Weights:
    """Return weights of a sum that is the mean, so that its gradient is written once.

    Args:
        weights: of the mean.
        count: how many tokens count.
        tokens: ``(B, *S)``, of which each has a factor.
        dtype: of the factors.
    """
    factors = weights.tokens
    if factors is None:
        factors = torch.ones(tokens.shape, dtype=dtype, device=tokens.device)
    return weights._replace(tokens=(factors / at_least_one(count)).to(dtype))


def mean_of_divided(tokens: Tensor, count: Tensor | int, with_terms: bool = False) -> Tensor:
    """Return the mean of losses with such weights; that of no token is NaN."""
    total = reduced(tokens, "sum", with_terms=with_terms)
    return total.where(torch.as_tensor(count, device=total.device) > 0, torch.nan)


def of_loss(results: Tensor, with_terms: bool) -> Tensor:
    """Return what is of losses where their terms may be beside them."""
    return results[..., 0] if with_terms else results


def sum_positions(tokens: Tensor) -> Tensor:
    """Return the sum of ``(B, *S)`` over the positions, ``(B,)``."""
    return tokens if tokens.ndim == 1 else tokens.flatten(1).sum(dim=1)
