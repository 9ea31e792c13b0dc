"""The tokens of a loss as ``N`` rows, and those of them that have a loss to look for."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...chains.structures import RankOneStep
from ...records import LinearLoss
from ...reference.logspace import spread
from .rows import in_own_dtype


def as_rows(of: LinearLoss[Any]) -> LinearLoss[Any]:
    """Return a loss of ``N`` tokens, those of ``(B, *S)`` in their order."""
    shape = of.x0.shape

    def flat(x: Tensor) -> Tensor:
        return spread(x, shape).reshape(-1)

    rows = of._replace(hidden=of.hidden.flatten(0, -2), head=in_own_dtype(of.head))
    return _mapped(rows, flat)


def at_rows(of: LinearLoss[Any], rows: Tensor | slice) -> LinearLoss[Any]:
    """Return the loss of some of ``N`` tokens, int64 ``(n,)`` or a slice; hidden is that of all."""
    return _mapped(of, lambda x: x[rows])


def counted(of: LinearLoss[Any]) -> Tensor | int:
    """Return how many tokens count, whatever their factors."""
    return of.x0.numel() if of.mask is None else of.mask.sum()


def rows_with_loss(of: LinearLoss[Any]) -> Tensor | None:
    """Return which of ``N`` tokens may have a loss, int64 ``(n,)``; None for all.

    Of what is out of range or cannot be reached the kernels tell. On a GPU, where to count tokens
    would be to wait for it, all are given to the kernels.
    """
    if of.x0.device.type != "cpu":
        return None
    keeps = of.counts
    if isinstance(of.step, RankOneStep):
        is_open = ~_is_settled(of, of.step)
        keeps = is_open if keeps is None else keeps & is_open
    if keeps is None or bool(keeps.all()):
        return None
    return keeps.nonzero().squeeze(-1)


def _is_settled(of: LinearLoss[Any], step: RankOneStep) -> Tensor:
    """Return which tokens are known to have loss 0: nothing else than x_t = x_0 leads to x_t."""
    if of.weights.ce != 0 or of.with_terms:
        return torch.zeros_like(of.x0, dtype=torch.bool)
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


def _mapped(of: LinearLoss[Any], change: Callable[[Tensor], Tensor]) -> LinearLoss[Any]:
    """Return a loss with all that its tokens have changed, but for their hidden states."""

    def changed(record: Any, *names: str) -> Any:
        values = {name: getattr(record, name) for name in names}
        return record._replace(**{k: None if v is None else change(v) for k, v in values.items()})

    made = changed(of, "x0", "mask", "x_t")
    step = changed(of.step, *of.step.of_tokens)
    weights = changed(of.weights, "tokens")
    return made._replace(step=step, weights=weights)  # type: ignore[no-any-return]
