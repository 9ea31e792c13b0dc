"""A loss by chunks of rows, each with all classes: no product is made twice."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ...records import LinearLoss, Loss, ShardedLoss, Sharding
from ..loss import loss, loss_and_grad, loss_and_grad_
from ..sharded_loss import sharded_loss, sharded_loss_and_grad
from .kernels import Kernels
from .rows import Gradients, chunks, zero_gradients
from .tokens import at_rows, zero_losses

MakeLoss = Callable[[Loss[Any]], Tensor]
MakeGradient = Callable[[Loss[Any]], tuple[Tensor, Tensor]]


def losses(of: LinearLoss[Any], kernels: Kernels) -> Tensor:
    """Return the losses of ``N`` tokens, ``(N,)``, or ``(N, 3)`` with terms."""
    kernel = kernels.of(loss)
    return _losses(of, lambda part: kernel(part, "none"))


def losses_and_gradients(of: LinearLoss[Any], kernels: Kernels) -> tuple[Tensor, Gradients]:
    """Return the losses, and the gradients of their sum."""
    if kernels.serve(loss_and_grad_):
        return _losses_and_gradients(of, kernels.of(loss_and_grad_), copies=1)
    kernel = kernels.of(loss_and_grad)
    return _losses_and_gradients(of, lambda part: kernel(part, "none", False), copies=2)


class Shards:
    """The same of a head whose classes are sharded: of the weights of this rank.

    The gradient of hidden is that by the classes of this rank. All ranks have the same chunks.
    """

    def __init__(self, sharding: Sharding, redraws: bool) -> None:
        self._sharding, self._redraws = sharding, redraws

    def losses(self, of: LinearLoss[Any], kernels: Kernels) -> Tensor:
        """Return the losses."""
        kernel = kernels.of(sharded_loss)
        make = lambda part: kernel(self._of(part), "none")  # noqa: E731
        return _losses(of, make, self._sharding.size)

    def losses_and_gradients(
        self, of: LinearLoss[Any], kernels: Kernels
    ) -> tuple[Tensor, Gradients]:
        """Return the losses, and the gradients of their sum."""
        kernel = kernels.of(sharded_loss_and_grad)
        make = lambda part: kernel(self._of(part), "none", False)  # noqa: E731
        return _losses_and_gradients(of, make, 2, self._sharding.size)

    def _of(self, part: Loss[Any]) -> ShardedLoss[Any]:
        return ShardedLoss(part, self._sharding, self._redraws)


def _losses(of: LinearLoss[Any], make: MakeLoss, counts_as: int | None = None) -> Tensor:
    losses = zero_losses(of)
    for chunk in chunks(of.hidden, of.head, 1, counts_as):
        losses[chunk.rows] = make(at_rows(of, chunk.rows).of(chunk.logits))
    return losses


def _losses_and_gradients(
    of: LinearLoss[Any], make: MakeGradient, copies: int, counts_as: int | None = None
) -> tuple[Tensor, Gradients]:
    losses, gradients = zero_losses(of), zero_gradients(of.hidden, of.head)
    for chunk in chunks(of.hidden, of.head, copies, counts_as):
        losses[chunk.rows], grad = make(at_rows(of, chunk.rows).of(chunk.logits))
        gradients.add(chunk, of.head, grad)
    return losses, gradients
