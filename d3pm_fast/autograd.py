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
        reduction: str,
        *args: Any,
    ) -> Tensor:
        """Return the reduced loss; ``args`` are those of the op between logits and mean."""
        mean = reduction == "mean"
        # float16 has too few exponents for a gradient divided by N: backward divides, once the
        # gradient scaler's factor is in.
        late = mean and logits.dtype == torch.float16
        flat = flatten(logits)
        token_loss, grad = torch.ops.d3pm_fast.loss_and_grad(flat, *args, mean and not late)
        mask = args[6]
        ctx.num_inputs = 2 + len(args)
        ctx.late_count = (flat.shape[0] if mask is None else mask.sum()) if late else None
        if torch.compiler.is_compiling():
            ctx.save_for_backward(grad.view(logits.shape))
        else:
            ctx.save_for_backward(logits)
            ctx.args, ctx.grad = (*args, mean and not late), grad
        return reduce_tokens(token_loss.view(logits.shape[:-1]), reduction, mask)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient with respect to the logits."""
        if ctx.late_count is not None:
            upstream = upstream / ctx.late_count
        if torch.compiler.is_compiling():
            (grad,) = ctx.saved_tensors
            grad = _scaled(grad, upstream, in_place=False)
        else:
            (logits,) = ctx.saved_tensors
            grad, ctx.grad = ctx.grad, None
            if grad is None:
                _, grad = torch.ops.d3pm_fast.loss_and_grad(flatten(logits), *ctx.args)
            grad = _scaled(grad.view(logits.shape), upstream, in_place=True)
        return grad, *(None,) * (ctx.num_inputs - 1)


class PPosterior(torch.autograd.Function):
    """``log p(x_s | x_t)``; the backward pass reads the logits again."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, *args: Any) -> Tensor:
        """Return the log-probabilities; ``args`` are those of the op after the logits."""
        ctx.save_for_backward(logits)
        ctx.args = args
        log_p: Tensor = torch.ops.d3pm_fast.p_posterior(flatten(logits), *args)
        return log_p.view(logits.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient with respect to the logits."""
        (logits,) = ctx.saved_tensors
        grad = torch.ops.d3pm_fast.p_posterior_grad(flatten(logits), flatten(upstream), *ctx.args)
        return grad.view(logits.shape), *(None,) * len(ctx.args)


def reduce_tokens(token_loss: Tensor, reduction: str, mask: Tensor | None) -> Tensor:
    """Return the token losses ``(B, *S)`` as they are, summed by item, summed or averaged."""
    if reduction == "none":
        return token_loss
    if reduction == "batch":
        return token_loss if token_loss.ndim == 1 else token_loss.flatten(1).sum(dim=1)
    if reduction == "sum":
        return token_loss.sum()
    return token_loss.mean() if mask is None else token_loss.sum() / mask.sum()


def flatten(logits: Tensor) -> Tensor:
    """Return ``(B, *S, K)`` logits as a contiguous ``(N, K)``."""
    return logits.reshape(-1, logits.shape[-1]).contiguous()


def _scaled(grad: Tensor, upstream: Tensor, in_place: bool) -> Tensor:
    if upstream.ndim > 0:  # one factor an item or a token
        upstream = upstream.reshape(*upstream.shape, *(1,) * (grad.ndim - upstream.ndim))
    elif in_place and upstream.device.type == "cpu" and upstream.item() == 1:
        return grad
    return grad.mul_(upstream) if in_place else (grad * upstream).to(grad.dtype)
