"""The differentiable operations: each gradient comes from a kernel, nothing is saved but inputs."""

# The compilers of PyTorch 2.4 to 2.6 cannot build annotations of inner functions.
from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.compiler import is_compiling

from . import derivatives
from .derivatives import Differentiable, Gradient, Inputs, Items, split
from .ops.scale import scale_
from .reductions import at_least_one, of_loss, reduced


class LossOperation(NamedTuple):
    """A loss of tokens; its items begin with x_0 and the mask.

    Attributes:
        value: the loss, with a reduction: "none", "sum" or "mean".
        with_gradient: the loss and the gradient of each input in the type of the calculation or
            its own; late, a mean's gradient is left undivided. None where the value is plain
            PyTorch.
        reference: of the items, the loss of each token as a function in plain PyTorch.
        reduces: whether it sums tokens up; else its reduction is "none".
        with_terms: whether the loss has one axis more, of which only the first entry is
            differentiated, see :class:`~d3pm_fast.records.Loss`.
        gradient: of each input, from that of each token's loss; None where it is what
            ``with_gradient`` returns, scaled: that of an input which all tokens share is not.
    """

    value: Callable[[Inputs, Items, str], Tensor]
    with_gradient: Callable[[Inputs, Items, str, bool], tuple[Tensor, ...]] | None
    reference: Callable[[Items], Callable[..., Tensor]]
    reduces: bool = True
    with_terms: bool = False
    gradient: Callable[[Inputs, Items, Tensor], Inputs] | None = None

    def of_tokens(self) -> Differentiable:
        """Return the loss of each token."""
        with_gradient = self.with_gradient

        def value(inputs: Inputs, items: Items) -> Tensor:
            return self.value(inputs, items, "none")

        def gradient(inputs: Inputs, items: Items, upstream: Tensor) -> Inputs:
            assert with_gradient is not None
            _, *grads = with_gradient(inputs, items, "none", False)
            upstream = of_loss(upstream, self.with_terms)
            return tuple(scaled(grad, upstream).to(inputs[0].dtype) for grad in grads)

        if self.gradient is not None:
            return Differentiable(value, self.gradient, self.reference)
        return Differentiable(value, None if with_gradient is None else gradient, self.reference)


def differentiable(operation: Differentiable, inputs: Inputs, items: Items = ()) -> Tensor:
    """Return an operation's value, with a graph where one is wanted."""
    if derivatives.are_asked(*inputs):
        return derivatives.Transformed.apply(operation, len(inputs), *inputs, *items)  # type: ignore[no-any-return, no-untyped-call]
    if operation.gradient is not None and _needs_graph(inputs):
        return Value.apply(operation, len(inputs), *_distinct(*inputs, *items))  # type: ignore[no-any-return, no-untyped-call]
    return operation.value(inputs, items)


def loss(operation: LossOperation, reduction: str, inputs: Inputs, items: Items) -> Tensor:
    """Return the loss of each token, or a reduction of them, with a graph where one is wanted."""
    fused = reduction if operation.reduces and reduction != "batch" else "none"
    waits_for_factors = fused == "none" and operation.gradient is not None
    if waits_for_factors or derivatives.are_asked(*inputs):
        tokens = differentiable(operation.of_tokens(), inputs, items)
        return reduced(tokens, reduction, counted(items), operation.with_terms)
    if operation.with_gradient is not None and _needs_graph(inputs):
        tensors = _distinct(*inputs, *items)
        value: Tensor = Loss.apply(operation, fused, len(inputs), *tensors)  # type: ignore[no-untyped-call]
    else:
        value = operation.value(inputs, items, fused)
    if fused == reduction:
        return value
    return reduced(value, reduction, counted(items), operation.with_terms)


def _distinct(*tensors: Tensor | None) -> list[Tensor | None]:
    """Return the tensors, for a compiler that refuses one given twice, as x_0 that is x_t."""
    if not is_compiling():
        return list(tensors)
    return [x if x is None else x.view_as(x) for x in tensors]


def _needs_graph(inputs: Inputs) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in inputs)


class Value(torch.autograd.Function):
    """An operation whose backward pass reads the inputs again."""

    @staticmethod
    def forward(ctx: Any, operation: Differentiable, count: int, *tensors: Tensor | None) -> Tensor:
        """Return the value; the first ``count`` tensors are the inputs."""
        ctx.operation, ctx.count, ctx.is_compiled = operation, count, is_compiling()
        ctx.save_for_backward(*tensors)
        return operation.value(*split(tensors, count))

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the inputs."""
        inputs, items = split(ctx.saved_tensors, ctx.count)
        if torch.is_grad_enabled() and not ctx.is_compiled:
            grads = Gradient.apply(ctx.operation, ctx.count, upstream, *inputs, *items)  # type: ignore[no-untyped-call]
        else:
            grads = ctx.operation.gradient(inputs, items, upstream)
        return None, None, *grads, *(None for _ in items)


class Loss(torch.autograd.Function):
    """The loss of each token, or its sum or mean; the forward pass makes the gradient beside it.

    The gradient is handed out once, scaled in place by what comes from above, so that a training
    step holds one tensor of the logits' size. A second backward pass makes it anew.
    """

    @staticmethod
    def forward(
        ctx: Any, operation: LossOperation, reduction: str, count: int, *tensors: Tensor | None
    ) -> Tensor:
        """Return the loss; the first ``count`` tensors are the inputs."""
        inputs, items = split(tensors, count)
        # float16 has too few exponents for a gradient divided by N: backward divides, once the
        # gradient scaler's factor is in.
        late = reduction == "mean" and inputs[0].dtype == torch.float16
        assert operation.with_gradient is not None
        loss, *grads = operation.with_gradient(inputs, items, reduction, late)
        ctx.late_count = at_least_one(counted(items)) if late else None
        ctx.operation, ctx.reduction, ctx.count = operation, reduction, count
        ctx.dtypes, ctx.num_items = [x.dtype for x in inputs], len(items)
        ctx.is_compiled = is_compiling()
        if ctx.is_compiled:
            ctx.save_for_backward(*grads)
        else:
            ctx.save_for_backward(*tensors)
            ctx.grads = grads
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the inputs."""
        upstream = of_loss(upstream, ctx.operation.with_terms)
        if torch.is_grad_enabled() and not ctx.is_compiled:
            grads = _with_a_graph(ctx, upstream)
        else:
            factor = upstream if ctx.late_count is None else upstream / ctx.late_count
            made = ctx.saved_tensors if ctx.is_compiled else _made_once(ctx)
            pairs = zip(made, ctx.dtypes, strict=True)
            grads = tuple(scaled(grad, factor).to(dtype) for grad, dtype in pairs)
        return None, None, None, *grads, *[None] * ctx.num_items


def _made_once(ctx: Any) -> Any:
    """Return the gradients that the forward pass made; once they are handed out, new ones."""
    grads, ctx.grads = ctx.grads, None
    if grads is None:
        inputs, items = split(ctx.saved_tensors, ctx.count)
        late = ctx.late_count is not None
        _, *grads = ctx.operation.with_gradient(inputs, items, ctx.reduction, late)
    return grads


def _with_a_graph(ctx: Any, upstream: Tensor) -> tuple[Tensor, ...]:
    """Return gradients that can be differentiated: those of the losses of all tokens."""
    _, items = split(ctx.saved_tensors, ctx.count)
    if ctx.reduction == "mean":
        upstream = upstream / at_least_one(counted(items))
    upstream = upstream.expand(items[0].shape)
    operation = ctx.operation.of_tokens()
    if ctx.operation.with_terms:
        upstream = torch.stack((upstream, *2 * [torch.zeros_like(upstream)]), dim=-1)
    return Gradient.apply(operation, ctx.count, upstream, *ctx.saved_tensors)  # type: ignore[no-any-return, no-untyped-call]


def scaled(grad: Tensor, factor: Tensor) -> Tensor:
    """Return a gradient scaled by one number or by one for each token; in place if not compiled."""
    if is_compiling():
        return grad * (factor.unsqueeze(-1) if 0 < factor.ndim < grad.ndim else factor)
    return grad.mul_(factor) if factor.ndim == grad.ndim else scale_(grad, factor)


def counted(items: Items) -> Tensor | int:
    """Return how many tokens count."""
    x0, mask = items[:2]
    assert x0 is not None
    return x0.numel() if mask is None else mask.sum()
