"""The loss of logits whose classes are sharded over the ranks of a process group.

It is composed of the strokes of :mod:`.loss_strokes`. On the wire are their numbers a row: from
each rank to all others the statistics, and the sums where the chain redraws tokens. All ranks add
them up in one order, so that they have the same loss, bit by bit.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from .. import reference
from .._collectives import gathered
from ..chains.structures import RANK_ONE
from ..records import Loss, ShardedLoss
from ..reductions import divided, mean_of_divided, reduced
from ..reference.logspace import compute_dtype
from .loss import fake_loss, fake_loss_and_grad
from .loss_strokes import loss_gradient, loss_solve, loss_statistics, loss_sums, merged
from .register import Operation


def _fake(of: ShardedLoss[Any], reduction: str) -> Tensor:
    return fake_loss(of.of, reduction)


def _fake_and_grad(of: ShardedLoss[Any], reduction: str, late: bool) -> tuple[Tensor, Tensor]:
    return fake_loss_and_grad(of.of, reduction, late)


sharded_loss = Operation("sharded_loss", _fake)
sharded_loss_and_grad = Operation("sharded_loss_and_grad", _fake_and_grad)


def _by_strokes(implementation: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return the loss, and the loss with its gradient, of an implementation that has strokes."""
    strokes = loss_statistics, loss_solve, loss_sums, loss_gradient
    statistics_of, line_of, sums_of, gradient_of = (
        stroke.kernel(implementation, RANK_ONE.name) for stroke in strokes
    )

    def of_tokens(sharded: ShardedLoss[Any], has_gradient: bool) -> tuple[Tensor, Tensor]:
        of, sharding, redraws = sharded
        shard, group = sharding.shard, sharding.group
        statistics = _of_all(statistics_of(of, shard), of, group)
        sums = statistics.new_zeros(*of.x0.shape, 2)
        if redraws and (of.weights.vb or of.with_terms):
            line = line_of(of, shard, statistics)
            sums = gathered(sums_of(of, shard, statistics, line), group).sum(dim=0)
        if not has_gradient:
            of = of._replace(logits=of.logits[..., :0])
        return gradient_of(of, shard, statistics, sums)  # type: ignore[no-any-return]

    def loss(sharded: ShardedLoss[Any], reduction: str) -> Tensor:
        tokens, _ = of_tokens(sharded, has_gradient=False)
        return reduced(tokens, reduction, _count(sharded.of), sharded.of.with_terms)

    def loss_and_grad(
        sharded: ShardedLoss[Any], reduction: str, late: bool
    ) -> tuple[Tensor, Tensor]:
        of, count = sharded.of, _count(sharded.of)
        divides = reduction == "mean" and not late
        if divides:
            weights = divided(of.weights, count, of.x0, compute_dtype(of.logits.dtype))
            sharded = sharded._replace(of=of._replace(weights=weights))
        tokens, grad = of_tokens(sharded, has_gradient=True)
        if not divides:
            return reduced(tokens, reduction, count, of.with_terms), grad
        return mean_of_divided(tokens, count, of.with_terms), grad

    return loss, loss_and_grad


def _of_all(statistics: Tensor, of: Loss[Any], group: Any) -> Tensor:
    """Return the statistics of whole rows; a mask's logit travels where there is one."""
    has_mask = of.step.mask_id >= 0
    parts = gathered(statistics if has_mask else statistics[..., :4], group)
    differ = (parts[..., 2] > -torch.inf).sum(dim=0) > 1  # x_0 is in one shard
    if of.x0.device.type == "cpu" and bool(differ.any()):
        raise ValueError(
            "x0 must be the same on all ranks of the group whose classes are sharded; if FSDP "
            "shards the weight, call the loss in a module that gathers it, as LinearLoss"
        )
    whole = merged(tuple(parts if has_mask else pad(parts, (0, 1), value=-torch.inf)))
    return whole.masked_fill(differ.unsqueeze(-1), torch.nan)


def _count(of: Loss[Any]) -> Tensor:
    """Return how many tokens count, float64 ``()``."""
    if of.mask is not None:
        return of.mask.sum().double()
    return torch.full((), of.x0.numel(), dtype=torch.float64, device=of.x0.device)


sharded_loss.serve("reference", reference.sharded_loss, [RANK_ONE])
for _name in ("cpu", "triton"):
    _loss, _loss_and_grad = _by_strokes(_name)
    sharded_loss.serve(_name, _loss, [RANK_ONE], is_registered=False)
    sharded_loss_and_grad.serve(_name, _loss_and_grad, [RANK_ONE], is_registered=False)
