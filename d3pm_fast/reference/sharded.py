"""Logits whose classes are sharded over the ranks of a process group.

A loss gathers them. Laws and draws, which have no other kernels, take the numbers of rows alone.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from .._collectives import GatherRows, gathered
from .._no_law import check_drawn
from ..records import Model, Random, ShardedLoss, ShardedStep, Sharding
from .draws import NONE, draw_row
from .logspace import compute_dtype, log_add_exp
from .loss import loss
from .philox import uniforms_of
from .rank_one import RankOneLogs


def whole_logits(logits: Tensor, sharding: Sharding) -> Tensor:
    """Return the logits of all classes from those of this rank's shard."""
    lacking = sharding.size - logits.shape[-1]
    rows = pad(logits, (0, lacking), value=-torch.inf)
    gathered: Tensor = GatherRows.apply(rows, sharding.group)  # type: ignore[no-untyped-call]
    return gathered[..., : sharding.num_logits]


def sharded_loss(of: ShardedLoss[Any], reduction: str) -> Tensor:
    """Return the loss of the whole logits."""
    whole = whole_logits(of.of.logits, of.sharding)
    return loss(of.of._replace(logits=whole), reduction)


def sharded_posterior(logits: Tensor, x_t: Tensor, of: ShardedStep[Any], model: Model) -> Tensor:
    """Return ``log p(x_s | x_t)`` of this rank's classes, differentiable in its logits."""
    part = _Part.of(logits.to(compute_dtype(logits.dtype)), x_t, of, model)
    logs, dtype = part.logs, part.tilted.dtype
    lse, at_xt = RowStatistics.apply(part.tilted, part.here, of.sharding.group)  # type: ignore[no-untyped-call]
    log_s = part.tilted - lse
    log_keep = logs.bar_keep.log().to(dtype)
    log_f = log_add_exp(log_keep + log_s, part.bar_spread.log().to(dtype))
    log_here = log_add_exp(log_keep + at_xt - lse, part.bar_spread_xt.log().to(dtype))
    log_z = log_add_exp(part.spread_xt.log().to(dtype), logs.keep.log().to(dtype) + log_here)
    column = part.spread_xt + logs.keep * part.here
    moved = column.log().to(dtype) - log_z + log_f
    # Where nothing but x_t leads to x_t, the step stays there, also where s forbids x_t.
    stays = (part.spread_xt == 0) & (logs.keep > 0)
    fixed = torch.zeros_like(moved).masked_fill(~part.here, -torch.inf)
    log_p: Tensor = log_s.where(part.is_direct, fixed.where(stays, moved))
    return log_p.where(part.inside.unsqueeze(-1), torch.nan).to(logits.dtype)


def sharded_p_sample(
    logits: Tensor, x_t: Tensor, of: ShardedStep[Any], model: Model, random: Random
) -> Tensor:
    """Return x_s, int64 ``(B, *S)``, the same on all ranks; ``NONE`` where there is no law."""
    sharding = of.sharding
    part = _Part.of(logits.double(), x_t, of, model)
    logs, token = part.logs, x_t.where(part.inside, 0)
    choice, draw = (u.view(x_t.shape) for u in uniforms_of(random, x_t.numel()))
    each = gathered(_statistics(part.tilted, part.here), sharding.group)
    top, shares, lse, at_xt = _whole(each)
    owner = draw_row(shares.movedim(0, -1), draw)
    rank = sharding.rank
    before, mine = shares[:rank].sum(dim=0), shares[rank]
    within = ((draw * shares.sum(dim=0) - before) / mine).nan_to_num(0).clamp(0, 1)
    drawn = torch.full_like(x_t, NONE)
    if logits.shape[-1] > 0:
        found = draw_row((part.tilted - top.unsqueeze(-1)).exp(), within)
        drawn = (sharding.shard.first + found).where((owner == rank) & (found >= 0), NONE)
    drawn = gathered(drawn, sharding.group).amax(dim=0)
    log_here = logs.bar_keep.log().squeeze(-1) + at_xt - lse
    here = log_add_exp(log_here, part.bar_spread_xt.log().squeeze(-1)).exp()
    drawn = logs.mixed(here, drawn, lse.isfinite(), token, model, (choice, draw))
    drawn = drawn.where(part.inside & ~logs.target_time.isnan().squeeze(-1), NONE)
    if drawn.device.type == "cpu":
        check_drawn(drawn, x_t, lambda token: whole_logits(part.logits[token], sharding))
    return drawn


class _Part(NamedTuple):
    """What a rank knows of rows: ``(B, *S, n)`` of its classes, else ``(B, *S, 1)``.

    Attributes:
        logs: the steps' coefficients.
        logits: -inf for the class that data never hold.
        tilted: their sum with the logarithm of what s[x_t] is multiplied by.
        here: whether a class is x_t.
        inside: whether x_t is a class, ``(B, *S)``.
        is_direct: whether s itself is the law.
        spread_xt: u[x_t].
        bar_spread: ubar of the classes.
        bar_spread_xt: ubar[x_t].
    """

    logs: RankOneLogs
    logits: Tensor
    tilted: Tensor
    here: Tensor
    inside: Tensor
    is_direct: Tensor
    spread_xt: Tensor
    bar_spread: Tensor
    bar_spread_xt: Tensor

    @classmethod
    def of(cls, logits: Tensor, x_t: Tensor, of: ShardedStep[Any], model: Model) -> "_Part":
        step, first = of.step, of.sharding.shard.first
        logs = RankOneLogs.of(step, (*x_t.shape, step.num_classes), logits.dtype)
        inside = (x_t >= 0) & (x_t < step.num_classes)
        index = x_t.where(inside, 0).unsqueeze(-1)
        classes = torch.arange(first, first + logits.shape[-1], device=logits.device)
        logits = logits.masked_fill(classes == step.forbidden, -torch.inf)
        vector, here = logs.log_vector.exp(), classes == index

        def spread(base: Tensor, mask: Tensor, at: Tensor) -> Tensor:
            entered: Tensor = base * vector[at] + mask * (at == step.mask_id)
            return entered

        spread_xt = spread(logs.base, logs.mask, index)
        bar_xt = spread(logs.bar_base, logs.bar_mask, index)
        is_direct = (logs.target_time == 0) & model.direct
        tilted = logits
        if model.posterior_mean:
            other = logs.keep * bar_xt + spread_xt
            tilt = other / (other + logs.keep * logs.bar_keep)
            tilt = tilt.where((other > 0) & ~is_direct, 1).log().to(logits.dtype)
            tilted = logits + tilt * here
        bar_spread = spread(logs.bar_base, logs.bar_mask, classes)
        return cls(logs, logits, tilted, here, inside, is_direct, spread_xt, bar_spread, bar_xt)


class RowStatistics(torch.autograd.Function):
    """The logarithm of the sum over whole rows, and the logit of x_t, the same on all ranks.

    What ranks make of them differs, so that all ranks' gradients of them are summed.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, here: Tensor, group: Any) -> tuple[Tensor, Tensor]:
        """Return both, ``(B, *S, 1)``."""
        _, _, lse, at_xt = _whole(gathered(_statistics(logits, here), group))
        ctx.group = group
        ctx.save_for_backward(logits, here, lse.unsqueeze(-1))
        return lse.unsqueeze(-1), at_xt.unsqueeze(-1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_lse: Tensor, of_xt: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of this rank's logits."""
        logits, here, lse = ctx.saved_tensors
        above = gathered(torch.cat((of_lse, of_xt), dim=-1), ctx.group).sum(dim=0)
        of_lse, of_xt = above.split(1, dim=-1)
        grad: Tensor = of_lse * (logits - lse).exp() + of_xt * here
        return grad.where((of_lse != 0) | (of_xt != 0), 0), None, None


def _statistics(logits: Tensor, here: Tensor) -> Tensor:
    """Return the largest of this rank's logits, their sum relative to it, and that of x_t."""
    largest = _largest(logits)
    level = largest.where(largest > -torch.inf, 0).unsqueeze(-1)
    total = (logits - level).exp().sum(dim=-1)
    return torch.stack((largest, total, _largest(logits.where(here, -torch.inf))), dim=-1)


def _largest(logits: Tensor) -> Tensor:
    if logits.shape[-1] == 0:
        return logits.new_full(logits.shape[:-1], -torch.inf)
    return logits.amax(dim=-1)


def _whole(each: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the largest, the sums of all ranks relative to it, the log-sum, and that of x_t."""
    largest, totals, at_xt = each.unbind(-1)
    top = largest.amax(dim=0)
    shares = totals * (largest - top).exp().where(largest > -torch.inf, 0)
    return top, shares, top + shares.sum(dim=0).log(), at_xt.amax(dim=0)
