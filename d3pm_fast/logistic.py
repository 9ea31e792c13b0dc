"""A prediction of x_0 by two numbers a token; its K logits exist for a chunk of items at a time."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .ops.logistic import LogisticOperations

__all__ = ["Logistic"]

CHUNK_BYTES = {"cpu": 1 << 21, "cuda": 1 << 25}  # what the cache holds until it is read


class Logistic(NamedTuple):
    """A truncated discretized logistic distribution for each token (D3PM, appendix A.8).

    Wherever logits are taken it may stand in their place, and so may the pair
    ``(loc, log_scale)``; see :func:`d3pm_fast.functional.logistic_logits`.

    Attributes:
        loc: ``(B, *S)``, float32, float64, bfloat16 or float16; the classes span [-1, 1].
        log_scale: of the shape and the dtype of loc.
        edge_corrected: whether the first and the last class take all the mass outside of them.
    """

    loc: Tensor
    log_scale: Tensor
    edge_corrected: bool = False


class Call(NamedTuple):
    """An operation on logits, for items of a batch at a time.

    Attributes:
        num_classes: K.
        edge_corrected: of the distribution.
        logistic: what makes logits, and of their gradient that of the parameters.
        items: maps a slice of the batch to the operation's arguments after the logits.
    """

    num_classes: int
    edge_corrected: bool
    logistic: LogisticOperations
    items: Callable[[slice], tuple[Any, ...]]

    def chunks(self, loc: Tensor, log_scale: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield slices of the batch, and of both parameters, in the dtype of the calculation."""
        a_batch = loc[:1].numel() * self.num_classes * 4
        chunk_bytes = CHUNK_BYTES.get(loc.device.type, CHUNK_BYTES["cuda"])
        size = max(chunk_bytes // max(a_batch, 1), 1)
        dtype = torch.float64 if loc.dtype == torch.float64 else torch.float32
        for first in range(0, max(len(loc), 1), size):
            part = slice(first, first + size)
            yield part, loc[part].to(dtype), log_scale[part].to(dtype)

    def logits(self, loc: Tensor, log_scale: Tensor) -> Tensor:
        """Return the logits of a chunk."""
        return self.logistic.logits(loc, log_scale, self.num_classes, self.edge_corrected)

    def pull(self, loc: Tensor, log_scale: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of a chunk's parameters from that of its logits."""
        return self.logistic.gradient(loc, log_scale, grad, self.edge_corrected)


def apply(operation: Callable[..., Tensor], parameters: Logistic, call: Call) -> Tensor:
    """Return an operation's result; its first dimension is the batch."""
    return torch.cat(
        [
            operation(call.logits(loc, log_scale), *call.items(part))
            for part, loc, log_scale in call.chunks(parameters.loc, parameters.log_scale)
        ]
    )


class LogisticLoss(torch.autograd.Function):
    """The loss of each token; the forward pass makes the gradients of both parameters beside it."""

    @staticmethod
    def forward(
        ctx: Any,
        loc: Tensor,
        log_scale: Tensor,
        call: Call,
        loss_and_grad: Callable[..., tuple[Tensor, Tensor]],
    ) -> Tensor:
        """Return the loss ``(B, *S)``; ``call`` has the arguments without the reduction."""
        losses, grads = [], []
        for part, loc_part, log_scale_part in call.chunks(loc, log_scale):
            logits = call.logits(loc_part, log_scale_part)
            loss, grad = loss_and_grad(logits, *call.items(part), "none", False)
            losses.append(loss)
            grads.append(call.pull(loc_part, log_scale_part, grad))
        ctx.save_for_backward(*(torch.cat(parts) for parts in zip(*grads, strict=True)))
        ctx.dtype = loc.dtype
        return torch.cat(losses)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients with respect to loc and log_scale."""
        loc, log_scale = ((grad * upstream).to(ctx.dtype) for grad in ctx.saved_tensors)
        return loc, log_scale, None, None


class LogisticPPosterior(torch.autograd.Function):
    """``log p(x_s | x_t)``; the backward pass makes the logits again."""

    @staticmethod
    def forward(
        ctx: Any,
        loc: Tensor,
        log_scale: Tensor,
        call: Call,
        p_posterior: Callable[..., Tensor],
        p_posterior_grad: Callable[..., Tensor],
    ) -> Tensor:
        """Return the log-probabilities."""
        ctx.save_for_backward(loc, log_scale)
        ctx.call, ctx.p_posterior_grad = call, p_posterior_grad
        return apply(p_posterior, Logistic(loc, log_scale), call)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients with respect to loc and log_scale."""
        pulled = []
        for part, loc, log_scale in ctx.call.chunks(*ctx.saved_tensors):
            logits = ctx.call.logits(loc, log_scale)
            pull = upstream[part].contiguous()
            grad = ctx.p_posterior_grad(logits, pull, *ctx.call.items(part))
            pulled.append(ctx.call.pull(loc, log_scale, grad))
        dtype = ctx.saved_tensors[0].dtype
        loc, log_scale = (torch.cat(parts).to(dtype) for parts in zip(*pulled, strict=True))
        return loc, log_scale, None, None, None
