"""What the ranks of a process group tell each other."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def gathered(x: Tensor, group: Any) -> Tensor:
    """Return what all ranks have, ``(ranks, *x.shape)``, in their order: the same on each.

    Args:
        x: of one shape and dtype on all ranks.
        group: of processes; None for the default one.
    """
    size = dist.get_world_size(group)
    if size == 1 or x.numel() == 0:
        return x.expand(size, *x.shape)
    whole = x.new_empty(size, *x.shape)
    dist.all_gather(list(whole), x.contiguous(), group=group)
    return whole


class GatherRows(torch.autograd.Function):
    """The rows of all ranks side by side; a rank has the gradient of its own part of them.

    What is made of them has to be the same on all ranks, as are then the gradients.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        """Return ``(..., ranks * n)`` from ``(..., n)``."""
        ctx.rank, ctx.size = dist.get_rank(group), x.shape[-1]
        return gathered(x, group).movedim(0, -2).flatten(-2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        """Return the part of this rank."""
        return upstream.narrow(-1, ctx.rank * ctx.size, ctx.size), None


class SumGradient(torch.autograd.Function):
    """What is the same on all ranks; its gradient is the sum of those that they make of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        """Return the tensor."""
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        """Return the sum."""
        total = upstream.contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None
