"""The differentiable operations: each gradient comes from a kernel, nothing is saved but inputs."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Loss(torch.autograd.Function):
    """The loss reduced over tokens; its gradient is made in the forward pass, beside it.

    The gradient is handed out once, scaled in place by what comes from above, so that a training
    step holds one ``(N, K)`` tensor. A second backward pass makes it anew.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        shape: tuple[int, ...],
        reduction: str,
        *args: Any,
    ) -> Tensor:
        """Return the reduced loss; ``args`` are those of the op between logits and scale."""
        mean = reciprocal_count(logits, args[6]) if reduction == "mean" else None
        # float16 has too few exponents for a gradient divided by N: backward divides, once the
        # gradient scaler's factor is in.
        late = mean is not None and logits.dtype == torch.float16
        scale = None if late else mean
        token_loss, grad = torch.ops.d3pm_fast.loss_and_grad(logits, *args, scale)
        ctx.num_inputs = 3 + len(args)
        ctx.late_scale = mean if late else None
        if torch.compiler.is_compiling():
            ctx.save_for_backward(grad)
        else:
            ctx.save_for_backward(logits)
            ctx.args, ctx.grad = (*args, scale), grad
        return reduce_tokens(token_loss.view(shape), reduction, mean)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient with respect to the logits."""
        if ctx.late_scale is not None:
            upstream = upstream * ctx.late_scale
        if torch.compiler.is_compiling():
            (grad,) = ctx.saved_tensors
            grad = _scaled(grad, upstream, in_place=False)
        else:
            (logits,) = ctx.saved_tensors
            grad, ctx.grad = ctx.grad, None
            if grad is None:
                _, grad = torch.ops.d3pm_fast.loss_and_grad(logits, *ctx.args)
            grad = _scaled(grad, upstream, in_place=True)
        return grad, *(None,) * (ctx.num_inputs - 1)


class PPosterior(torch.autograd.Function):
    """``log p(x_s | x_t)``; the backward pass reads the logits again."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, *args: Any) -> Tensor:
        """Return the log-probabilities; ``args`` are those of the op after the logits."""
        ctx.save_for_backward(logits)
        ctx.args = args
        log_p: Tensor = torch.ops.d3pm_fast.p_posterior(logits, *args)
        return log_p

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient with respect to the logits."""
        (logits,) = ctx.saved_tensors
        grad = torch.ops.d3pm_fast.p_posterior_grad(logits, upstream.contiguous(), *ctx.args)
        return grad, *(None,) * len(ctx.args)


def reduce_tokens(token_loss: Tensor, reduction: str, mean_scale: Tensor | None) -> Tensor:
    """Return the token losses ``(B, *S)`` as they are, summed, averaged or summed by item."""
    if reduction == "none":
        return token_loss
    if reduction == "batch":
        return token_loss.flatten(1).sum(dim=1)
    total = token_loss.sum()
    return total if mean_scale is None else (total * mean_scale).to(total.dtype)


def reciprocal_count(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Return 1 / (the number of tokens that count), float64, without reading it on the host."""
    if mask is not None:
        return mask.sum(dtype=torch.float64).reciprocal()
    count = logits.shape[0]
    return torch.full((), 1 / count if count else torch.inf, dtype=torch.float64)


def _scaled(grad: Tensor, upstream: Tensor, in_place: bool) -> Tensor:
    if upstream.ndim == 0 or upstream.numel() == 0:
        rows, factor = grad, upstream.sum()
        if in_place and factor.device.type == "cpu" and factor.item() == 1:
            return grad
    else:
        rows, factor = grad.view(upstream.numel(), -1, grad.shape[-1]), upstream.reshape(-1, 1, 1)
    scaled = rows.mul_(factor) if in_place else (rows * factor).to(grad.dtype)
    return scaled.view(grad.shape)
