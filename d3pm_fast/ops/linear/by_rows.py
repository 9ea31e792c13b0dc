"""A loss by chunks of rows, each with all classes: no product is made twice."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from ...records import LinearLoss, Loss, ShardedLoss, Sharding
from ..loss import loss, loss_and_grad, loss_and_grad_
from ..sharded_loss import sharded_loss, sharded_loss_and_grad
from .rows import Chunk, Gradients, chunks
from .tokens import at_rows, rows_with_loss

MakeLoss = Callable[[Loss[Any]], Tensor]
MakeGradient = Callable[[Loss[Any]], tuple[Tensor, Tensor]]


def write_losses(of: LinearLoss[Any], losses: Tensor, implementation: str, structure: str) -> None:
    """Write the losses of ``N`` tokens, ``(N,)``, or ``(N, 3)`` with terms; 0 is there before."""
    kernel = loss.kernel(implementation, structure)
    _write_losses(of, losses, lambda part: kernel(part, "none"))


def write_gradients(
    of: LinearLoss[Any],
    losses: Tensor,
    gradients: Gradients,
    implementation: str,
    structure: str,
) -> None:
    """Write the losses, and the gradients of their sum; 0 is there before."""
    if loss_and_grad_.is_served(implementation, structure):
        in_place = loss_and_grad_.kernel(implementation, structure)
        _write_gradients(of, losses, gradients, in_place, copies=1)
        return
    kernel = loss_and_grad.kernel(implementation, structure)
    _write_gradients(of, losses, gradients, lambda part: kernel(part, "none", False), copies=2)


class Shards:
    """The same of a head whose classes are sharded: of the weights of this rank.

    The gradient of hidden is that by the classes of this rank. All ranks have the same chunks.
    """

    def __init__(self, sharding: Sharding, redraws: bool) -> None:
        self._sharding, self._redraws = sharding, redraws

    def write_losses(
        self, of: LinearLoss[Any], losses: Tensor, implementation: str, structure: str
    ) -> None:
        """Write the losses."""
        kernel = sharded_loss.kernel(implementation, structure)
        make = lambda part: kernel(self._of(part), "none")  # noqa: E731
        _write_losses(of, losses, make, self._sharding.size)

    def write_gradients(
        self,
        of: LinearLoss[Any],
        losses: Tensor,
        gradients: Gradients,
        implementation: str,
        structure: str,
    ) -> None:
        """Write the losses, and the gradients of their sum."""
        kernel = sharded_loss_and_grad.kernel(implementation, structure)
        make = lambda part: kernel(self._of(part), "none", False)  # noqa: E731
        _write_gradients(of, losses, gradients, make, 2, self._sharding.size)

    def _of(self, part: Loss[Any]) -> ShardedLoss[Any]:
        return ShardedLoss(part, self._sharding, self._redraws)


def _write_losses(
    of: LinearLoss[Any], losses: Tensor, make: MakeLoss, counts_as: int | None = None
) -> None:
    for chunk in _chunks(of, 1, counts_as):
        losses[chunk.rows] = make(_of_chunk(of, chunk))


def _write_gradients(
    of: LinearLoss[Any],
    losses: Tensor,
    gradients: Gradients,
    make: MakeGradient,
    copies: int,
    counts_as: int | None = None,
) -> None:
    for chunk in _chunks(of, copies, counts_as):
        losses[chunk.rows], grad = make(_of_chunk(of, chunk))
        gradients.add(chunk, of.head, grad)


def _chunks(of: LinearLoss[Any], copies: int, counts_as: int | None) -> Iterator[Chunk]:
    chosen = rows_with_loss(of)
    counts = of.counts if chosen is None else None
    return chunks(of.hidden, of.head, chosen, counts, copies, counts_as)


def _of_chunk(of: LinearLoss[Any], chunk: Chunk) -> Loss[Any]:
    return at_rows(of, chunk.rows).of(chunk.logits)
