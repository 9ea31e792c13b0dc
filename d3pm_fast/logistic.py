"""A prediction of x_0 by two numbers a token, in place of K logits."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .chunks import Call, apply
from .ops.logistic import LogisticOperations
from .reference.logspace import compute_dtype

__all__ = ["Logistic"]


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


class LogisticMaker(NamedTuple):
    """What makes logits of the parameters of some items, and of their gradient the parameters'.

    Both calculate in the compute dtype of the parameters, and so are the gradients.

    Attributes:
        num_classes: K.
        edge_corrected: of the distribution.
        operations: of an implementation.
    """

    num_classes: int
    edge_corrected: bool
    operations: LogisticOperations

    def logits(self, loc: Tensor, log_scale: Tensor) -> Tensor:
        """Return the logits, ``(B, *S, K)``."""
        pair = _to_compute(loc, log_scale)
        return self.operations.logits(*pair, self.num_classes, self.edge_corrected)

    def pull(self, loc: Tensor, log_scale: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of both parameters from that of the logits."""
        pair = _to_compute(loc, log_scale)
        return self.operations.gradient(*pair, grad, self.edge_corrected)


def _to_compute(loc: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
    dtype = compute_dtype(loc.dtype)
    return loc.to(dtype), log_scale.to(dtype)


class LogisticLoss(torch.autograd.Function):
    """The loss of each token; the forward pass makes the gradients of both parameters beside it."""

    @staticmethod
    def forward(
        ctx: Any,
        loc: Tensor,
        log_scale: Tensor,
        call: Call,
        pull: Callable[..., tuple[Tensor, Tensor]],
        loss_and_grad: Callable[..., tuple[Tensor, Tensor]],
    ) -> Tensor:
        """Return the loss ``(B, *S)``; ``call`` has the arguments without the reduction."""
        losses, grads = [], []
        for part, pair in call.chunks(loc, log_scale):
            loss, grad = loss_and_grad(call.logits(*pair), *call.items(part), "none", False)
            losses.append(loss)
            grads.append(pull(*pair, grad))
        ctx.save_for_backward(*(torch.cat(parts) for parts in zip(*grads, strict=True)))
        ctx.dtype = loc.dtype
        return torch.cat(losses)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients with respect to loc and log_scale."""
        loc, log_scale = ((grad * upstream).to(ctx.dtype) for grad in ctx.saved_tensors)
        return loc, log_scale, None, None, None


class LogisticPPosterior(torch.autograd.Function):
    """``log p(x_s | x_t)``; the backward pass makes the logits again."""

    @staticmethod
    def forward(
        ctx: Any,
        loc: Tensor,
        log_scale: Tensor,
        call: Call,
        pull: Callable[..., tuple[Tensor, Tensor]],
        p_posterior: Callable[..., Tensor],
        p_posterior_grad: Callable[..., Tensor],
    ) -> Tensor:
        """Return the log-probabilities."""
        ctx.save_for_backward(loc, log_scale)
        ctx.call, ctx.pull, ctx.p_posterior_grad = call, pull, p_posterior_grad
        return apply(p_posterior, (loc, log_scale), call)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients with respect to loc and log_scale."""
        pulled = []
        for part, pair in ctx.call.chunks(*ctx.saved_tensors):
            logits, above = ctx.call.logits(*pair), upstream[part].contiguous()
            grad = ctx.p_posterior_grad(logits, above, *ctx.call.items(part))
            pulled.append(ctx.pull(*pair, grad))
        dtype = ctx.saved_tensors[0].dtype
        loc, log_scale = (torch.cat(parts).to(dtype) for parts in zip(*pulled, strict=True))
        return loc, log_scale, None, None, None, None
