"""The differentiable operations: each gradient comes from a kernel, nothing is saved but inputs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.compiler import is_compiling

from .ops.logistic import LogisticOperations
from .ops.scale import scale_
from .transitions import Transition


class Loss(torch.autograd.Function):
    """The loss of each token, or its sum or mean; the forward pass makes the gradient beside it.

    The gradient is handed out once, scaled in place by what comes from above, so that a training
    step holds one tensor of the logits' size. A second backward pass makes it anew.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        loss_and_grad: Callable[..., tuple[Tensor, Tensor]],
        reduction: str,
        args: tuple[Any, ...],
        transition: Transition,
    ) -> Tensor:
        """Return the loss; ``args`` are those of the op between logits and reduction."""
        # float16 has too few exponents for a gradient divided by N: backward divides, once the
        # gradient scaler's factor is in.
        late = reduction == "mean" and logits.dtype == torch.float16
        args = (*args, reduction, late)
        loss, grad = loss_and_grad(logits, *args)
        mask = args[1]
        ctx.late_count = (logits[..., 0].numel() if mask is None else mask.sum()) if late else None
        ctx.is_compiled = is_compiling()
        if ctx.is_compiled:
            ctx.save_for_backward(grad)
        else:
            ctx.save_for_backward(logits)
            ctx.args, ctx.grad, ctx.loss_and_grad = args, grad, loss_and_grad
            ctx.transition = transition  # which an op knows by a number alone
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient with respect to the logits."""
        if ctx.late_count is not None:
            upstream = upstream / ctx.late_count
        if ctx.is_compiled:
            (grad,) = ctx.saved_tensors
            return _scaled(grad, upstream, in_place=False), None, None, None, None
        (logits,) = ctx.saved_tensors
        grad, ctx.grad = ctx.grad, None
        if grad is None:
            _, grad = ctx.loss_and_grad(logits, *ctx.args)
        return _scaled(grad, upstream, in_place=True), None, None, None, None


class PPosterior(torch.autograd.Function):
    """``log p(x_s | x_t)``; the backward pass reads the logits again."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        p_posterior: Callable[..., Tensor],
        p_posterior_grad: Callable[..., Tensor],
        args: tuple[Any, ...],
        transition: Transition,
    ) -> Tensor:
        """Return the log-probabilities; ``args`` are those of the op after the logits."""
        ctx.save_for_backward(logits)
        ctx.args, ctx.p_posterior_grad = args, p_posterior_grad
        ctx.transition = transition  # which an op knows by a number alone
        return p_posterior(logits, *args)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient with respect to the logits."""
        (logits,) = ctx.saved_tensors
        grad = ctx.p_posterior_grad(logits, upstream.contiguous(), *ctx.args)
        return grad, None, None, None, None


class LogisticLogits(torch.autograd.Function):
    """The logits of the discretized logistic; the backward pass makes its edges again."""

    @staticmethod
    def forward(
        ctx: Any,
        loc: Tensor,
        log_scale: Tensor,
        num_classes: int,
        edge_corrected: bool,
        logistic: LogisticOperations,
    ) -> Tensor:
        """Return the log of each bin's mass."""
        ctx.save_for_backward(loc, log_scale)
        ctx.edge_corrected, ctx.logistic = edge_corrected, logistic
        return logistic.logits(loc, log_scale, num_classes, edge_corrected)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients with respect to loc and log_scale."""
        args = (*ctx.saved_tensors, upstream.contiguous(), ctx.edge_corrected)
        return *ctx.logistic.gradient(*args), None, None, None


def _scaled(grad: Tensor, upstream: Tensor, in_place: bool) -> Tensor:
    if upstream.ndim > 0:  # one factor a token
        upstream = upstream.unsqueeze(-1)
    elif in_place:
        return scale_(grad, upstream)
    return grad.mul_(upstream) if in_place else (grad * upstream).to(grad.dtype)
