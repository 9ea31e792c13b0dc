"""The operations on each kind of prediction, with their gradients and their meaning.

``arguments`` maps a structure's ``chain`` and the items to what a registered operation takes
after the logits.
"""

# The compilers of PyTorch 2.4 to 2.6 cannot build annotations of inner functions.
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import reference
from .autograd import LossOperation
from .chunks import Chunks
from .derivatives import Differentiable, Inputs, Items
from .logistic import LogisticMaker
from .ops.logistic import LogisticOperations

Arguments = Callable[..., tuple[Any, ...]]


def loss_of_logits(kernels: Any, arguments: Arguments) -> LossOperation:
    """Return the loss of logits."""

    def value(inputs: Inputs, items: Items, reduction: str) -> Tensor:
        return kernels.loss(*inputs, *arguments(kernels.chain, *items), reduction)  # type: ignore[no-any-return]

    def with_gradient(inputs: Inputs, items: Items, reduction: str, late: bool) -> Any:
        return kernels.loss_and_grad(*inputs, *arguments(kernels.chain, *items), reduction, late)

    def meaning(items: Items) -> Callable[..., Tensor]:
        args = (*arguments(reference.chain, *items), "none")
        return lambda logits: reference.loss(logits, *args)

    return LossOperation(value, None if kernels is reference else with_gradient, meaning)


def p_posterior_of_logits(kernels: Any, arguments: Arguments) -> Differentiable:
    """Return ``log p(x_s | x_t)`` of logits."""

    def value(inputs: Inputs, items: Items) -> Tensor:
        return kernels.p_posterior(*inputs, *arguments(kernels.chain, *items))  # type: ignore[no-any-return]

    def gradient(inputs: Inputs, items: Items, upstream: Tensor) -> Inputs:
        above = upstream.contiguous()
        return (kernels.p_posterior_grad(*inputs, above, *arguments(kernels.chain, *items)),)

    def meaning(items: Items) -> Callable[..., Tensor]:
        args = arguments(reference.chain, *items)
        return lambda logits: reference.p_posterior(logits, *args)

    return Differentiable(value, None if kernels is reference else gradient, meaning)


def loss_of_logistic(
    kernels: Any, arguments: Arguments, maker: LogisticMaker, chunks: Chunks
) -> LossOperation:
    """Return the loss of the parameters of logistic distributions, of each token."""
    of_logits = loss_of_logits(kernels, arguments)

    def value(inputs: Inputs, items: Items, _reduction: str) -> Tensor:
        def loss(logits: Tensor, *items: Tensor | None) -> Tensor:
            return of_logits.value((logits,), items, "none")

        return chunks.apply(loss, inputs, items)

    def with_gradient(inputs: Inputs, items: Items, *_: Any) -> tuple[Tensor, ...]:
        parts = []
        for loc, log_scale, *part in chunks.cut(*inputs, *items):
            logits = maker.logits(loc, log_scale)
            assert of_logits.with_gradient is not None
            loss, grad = of_logits.with_gradient((logits,), tuple(part), "none", False)
            parts.append((loss, *maker.pull(loc, log_scale, grad)))
        return tuple(map(torch.cat, zip(*parts, strict=True)))

    def meaning(items: Items) -> Callable[..., Tensor]:
        of = of_logits.reference(items)
        return lambda *pair: of(maker.meaning(*pair))

    return LossOperation(value, with_gradient, meaning)


def p_posterior_of_logistic(
    kernels: Any, arguments: Arguments, maker: LogisticMaker, chunks: Chunks
) -> Differentiable:
    """Return ``log p(x_s | x_t)`` of the parameters of logistic distributions."""
    of_logits = p_posterior_of_logits(kernels, arguments)

    def value(inputs: Inputs, items: Items) -> Tensor:
        return chunks.apply(lambda x, *items: of_logits.value((x,), items), inputs, items)

    def gradient(inputs: Inputs, items: Items, upstream: Tensor) -> Inputs:
        parts = []
        for loc, log_scale, above, *part in chunks.cut(*inputs, upstream, *items):
            logits = maker.logits(loc, log_scale)
            assert of_logits.gradient is not None
            (grad,) = of_logits.gradient((logits,), tuple(part), above)
            parts.append(maker.pull(loc, log_scale, grad))
        dtype = inputs[0].dtype
        return tuple(torch.cat(made).to(dtype) for made in zip(*parts, strict=True))

    def meaning(items: Items) -> Callable[..., Tensor]:
        of = of_logits.reference(items)
        return lambda *pair: of(maker.meaning(*pair))

    return Differentiable(value, gradient, meaning)


def logistic_logits(
    operations: LogisticOperations, num_classes: int, edge_corrected: bool
) -> Differentiable:
    """Return the logits themselves of logistic distributions."""

    def value(inputs: Inputs, _items: Items) -> Tensor:
        return operations.logits(*inputs, num_classes, edge_corrected)

    def gradient(inputs: Inputs, _items: Items, upstream: Tensor) -> Inputs:
        return operations.gradient(*inputs, upstream.contiguous(), edge_corrected)

    def meaning(_items: Items) -> Callable[..., Tensor]:
        return lambda loc, log_scale: reference.logistic_logits(
            loc, log_scale, num_classes, edge_corrected
        )

    return Differentiable(value, gradient, meaning)
