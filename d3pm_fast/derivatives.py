"""Derivatives of gradients, forward mode and functorch's transforms of the operations.

Values and gradients come from the kernels there too; what is derived from a gradient comes from
the reference, in float64.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling
from torch.func import vjp

Inputs = tuple[Tensor, ...]
Items = tuple[Tensor | None, ...]


class Differentiable(NamedTuple):
    """An operation with its gradient and its meaning.

    All take the ``inputs``, which it is differentiated in, and the ``items``: what goes with them
    along the batch (tokens, mask, times), None for what is not given. Nothing else may be a tensor
    that a caller could change.

    Attributes:
        value: the result, its first axis the batch.
        gradient: of each input, from that of the result, which comes last; None where the value
            is plain PyTorch.
        reference: of the items, the function of the inputs that the value is, in plain PyTorch.
    """

    value: Callable[[Inputs, Items], Tensor]
    gradient: Callable[[Inputs, Items, Tensor], Inputs] | None
    reference: Callable[[Items], Callable[..., Tensor]]


def are_asked(*inputs: Tensor) -> bool:
    """Return whether a transform of functorch, or forward mode, looks at these inputs."""
    if is_compiling():
        return False
    return are_transformed() or any(forward_ad.unpack_dual(x).tangent is not None for x in inputs)


def are_transformed() -> bool:
    """Return whether a transform of functorch is at work, under which no value can be read."""
    return torch._C._are_functorch_transforms_active()


def split(tensors: tuple[Any, ...], count: int) -> tuple[Any, Any]:
    """Return the inputs, the first ``count`` of the tensors, and the items."""
    return tensors[:count], tensors[count:]


class Transformed(torch.autograd.Function):
    """An operation that any transform may look at; also, behind it, its gradient."""

    @staticmethod
    def forward(operation: Differentiable, count: int, *tensors: Tensor | None) -> Tensor:
        """Return the value; the first ``count`` tensors are the inputs."""
        return operation.value(*split(tensors, count))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the tensors."""
        ctx.operation, ctx.count, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.example = output.detach()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the inputs."""
        grads = Gradient.apply(ctx.operation, ctx.count, upstream, *ctx.saved_tensors)  # type: ignore[no-untyped-call]
        return None, None, *grads, *(None for _ in ctx.saved_tensors[ctx.count :])

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        """Return the tangent of the value: what pulls back, which is linear, pulled back."""
        inputs, items = split(ctx.saved_tensors, ctx.count)
        pull = partial(_pull_back, ctx.operation.reference(items), inputs)
        along = _along(inputs, tangents[2:])
        return vjp(pull, torch.zeros_like(ctx.example))[1](along)[0]  # type: ignore[no-any-return]

    @staticmethod
    def vmap(
        info: Any, dims: tuple[int | None, ...], operation: Differentiable, count: int,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, int]:  # fmt: skip
        """Return the value of all items of all batches as one."""
        joined = _joined(info.batch_size, dims[2:], tensors)
        value = Transformed.apply(operation, count, *joined)  # type: ignore[no-untyped-call]
        return value.unflatten(0, (info.batch_size, -1)), 0


class Gradient(torch.autograd.Function):
    """The gradients of an operation's inputs, as functions of the upstream gradient and them."""

    @staticmethod
    def forward(
        operation: Differentiable, count: int, upstream: Tensor, *tensors: Tensor | None
    ) -> Inputs:
        """Return the gradients."""
        inputs, items = split(tensors, count)
        if operation.gradient is None:
            return vjp(lambda *x: operation.value(x, items), *inputs)[1](upstream)  # type: ignore[no-any-return]
        return operation.gradient(inputs, items, upstream)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Inputs) -> None:
        """Keep the tensors."""
        ctx.operation, ctx.count, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the upstream gradient and of the inputs."""
        pull, primals = _pull_of(ctx)
        grads = vjp(pull, *primals)[1](above)
        return None, None, *grads, *(None for _ in ctx.saved_tensors[len(primals) :])

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Inputs:
        """Return the tangents of the gradients."""
        pull, primals = _pull_of(ctx)
        along = _along(primals, tangents[2:])

        def pull_twice(*above: Tensor) -> tuple[Tensor, ...]:
            return vjp(pull, *primals)[1](above)  # type: ignore[no-any-return]

        zeros = tuple(torch.zeros_like(x) for x in primals[1:])
        return vjp(pull_twice, *zeros)[1](along)  # type: ignore[no-any-return]

    @staticmethod
    def vmap(
        info: Any, dims: tuple[int | None, ...], operation: Differentiable, count: int,
        *tensors: Tensor | None,
    ) -> tuple[Inputs, tuple[int, ...]]:  # fmt: skip
        """Return the gradients of all items of all batches as one."""
        joined = _joined(info.batch_size, dims[2:], tensors)
        grads = Gradient.apply(operation, count, *joined)  # type: ignore[no-untyped-call]
        return tuple(g.unflatten(0, (info.batch_size, -1)) for g in grads), (0,) * len(grads)


def _pull_back(value: Callable[..., Tensor], inputs: Inputs, upstream: Tensor) -> Inputs:
    """Return gradients in float64, differentiable as often as one likes."""

    def rounded(*inputs: Tensor) -> Tensor:
        return value(*(x.double() for x in inputs)).to(upstream.dtype)

    return vjp(rounded, *inputs)[1](upstream)  # type: ignore[no-any-return]


def _pull_of(ctx: Any) -> tuple[Callable[..., Inputs], Inputs]:
    """Return the gradient as a function, and what it is of."""
    upstream, *tensors = ctx.saved_tensors
    inputs, items = split(tuple(tensors), ctx.count)
    value = ctx.operation.reference(items)

    def pull(upstream: Tensor, *inputs: Tensor) -> Inputs:
        return _pull_back(value, inputs, upstream)

    return pull, (upstream, *inputs)


def _along(primals: Inputs, tangents: tuple[Tensor | None, ...]) -> Inputs:
    return tuple(
        torch.zeros_like(x) if d is None else d for x, d in zip(primals, tangents, strict=False)
    )


def _joined(
    batch_size: int, dims: tuple[int | None, ...], tensors: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...]:
    """Return tensors with the axis that is mapped over made part of their first axis."""

    def join(x: Tensor | None, dim: int | None) -> Tensor | None:
        if x is None:
            return None
        spread = x.expand(batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
        return spread.flatten(0, 1).contiguous()

    return tuple(map(join, tensors, dims))
