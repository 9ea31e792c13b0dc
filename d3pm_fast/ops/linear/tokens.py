"""The tokens of a loss as ``N`` rows, and those of them that have a loss to look for."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from ...chains.structures import RankOneStep
from ...records import LinearLoss, Loss
from ...reductions import divided
from ...reference.logspace import compute_dtype, spread
from .rows import in_own_dtype

AnyLoss = TypeVar("AnyLoss", LinearLoss[Any], Loss[Any])


def as_rows(of: LinearLoss[Any]) -> LinearLoss[Any]:
    """Return a loss of ``N`` tokens, those of ``(B, *S)`` in their order."""
    return flat(of)._replace(hidden=of.hidden.flatten(0, -2), head=in_own_dtype(of.head))


def flat(of: AnyLoss) -> AnyLoss:
    """Return a loss with all that its tokens have as ``(N,)``, but for what logits are made of."""
    shape = of.x0.shape
    return _mapped(of, lambda x: spread(x, shape).reshape(-1).contiguous())


def at_rows(of: LinearLoss[Any], rows: Tensor | slice) -> LinearLoss[Any]:
    """Return the loss of some of ``N`` tokens, int64 ``(n,)`` or a slice; hidden is that of all."""
    return _mapped(of, lambda x: x[rows])


def zero_losses(of: LinearLoss[Any]) -> Tensor:
    """Return losses of 0 for ``N`` tokens, ``(N,)``, or ``(N, 3)`` with terms."""
    shape = (*of.x0.shape, 3) if of.with_terms else of.x0.shape
    return of.hidden.new_zeros(shape, dtype=compute_dtype(of.head.dtype))


def counted(of: LinearLoss[Any]) -> Tensor | int:
    """Return how many tokens count, whatever their factors."""
    return of.x0.numel() if of.mask is None else of.mask.sum()


def with_loss(of: LinearLoss[Any]) -> tuple[LinearLoss[Any], Tensor | None]:
    """Return the loss of those of ``N`` tokens that may have one, and which they are; None for all.

    What is out of range or cannot be reached is left to the kernels. On a GPU, where to count the
    open tokens would be to wait for it, all are taken unless their number is known. It may be too
    large, but where it is too small the loss is NaN.
    """
    known = of.head.num_open if _is_bound_alone(of) else -1
    if known < 0 and of.x0.device.type != "cpu":
        return _hidden_of_counted(of), None
    is_open = are_open(of)
    number = int(is_open.sum()) if known < 0 else max(known, 1)
    if number >= len(is_open):
        return of if known < 0 else _hidden_of_counted(of), None
    rows = is_open.byte().argsort(descending=True, stable=True)[:number]
    some = at_rows(of._replace(hidden=of.hidden[rows]), rows)
    if known < 0:
        return some, rows
    some = _hidden_of_counted(some)
    one_or_nan = torch.where(is_open.sum() > number, torch.nan, 1.0)
    weights = divided(some.weights, one_or_nan, some.x0, compute_dtype(of.head.dtype))
    return some._replace(weights=weights), rows


def count_open(of: Loss[Any]) -> Tensor:
    """Return how many of the tokens ``(B, *S)`` may have a loss, int64 ``()``."""
    return are_open(flat(of)).sum()


def are_open(of: AnyLoss) -> Tensor:
    """Return which of ``N`` tokens may have a loss, bool ``(N,)``."""
    is_open = torch.ones_like(of.x0, dtype=torch.bool) if of.counts is None else of.counts
    if isinstance(of.step, RankOneStep) and _is_bound_alone(of):
        is_open = is_open & ~_is_settled(of, of.step)
    return is_open


def _hidden_of_counted(of: LinearLoss[Any]) -> LinearLoss[Any]:
    """Return a loss whose tokens that do not count have hidden states of 0, not anything."""
    if of.counts is None:
        return of
    return of._replace(hidden=of.hidden.where(of.counts.unsqueeze(-1), 0))


def _is_bound_alone(of: AnyLoss) -> bool:
    """Return whether nothing but the bound is asked for."""
    return of.weights.ce == 0 and not of.with_terms


def _is_settled(of: AnyLoss, step: RankOneStep) -> Tensor:
    """Return which tokens are known to have loss 0: nothing else than x_t = x_0 leads to x_t."""
    is_class = (of.x0 >= 0) & (of.x0 < step.num_classes) & (of.x0 != step.forbidden)
    stays = (of.x_t == of.x0) & is_class
    inside = (step.rows >= 0) & (step.rows < len(step.table))
    table = step.table[step.rows.where(inside, 0)]
    keep, base, to_mask, bar_keep, _, _, s = table.unbind(-1)
    leads = base if step.pi is None else base * step.pi[of.x_t.where(stays, 0)]
    is_left = (leads == 0) & ((of.x_t != step.mask_id) | (to_mask == 0)) & (keep * bar_keep > 0)
    if of.model.direct:
        is_left &= s > 0  # the softmax itself
    return stays & inside & is_left


def _mapped(of: AnyLoss, change: Callable[[Tensor], Tensor]) -> AnyLoss:
    """Return a loss with all that its tokens have changed, but for what logits are made of."""

    def changed(record: Any, *names: str) -> Any:
        values = {name: getattr(record, name) for name in names}
        return record._replace(**{k: None if v is None else change(v) for k, v in values.items()})

    made = changed(of, "x0", "mask", "x_t")
    step = changed(of.step, *of.step.of_tokens)
    weights = changed(of.weights, "tokens")
    return made._replace(step=step, weights=weights)  # type: ignore[no-any-return]
