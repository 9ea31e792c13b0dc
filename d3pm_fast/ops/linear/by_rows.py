"""A loss by chunks of rows, each with all classes: no product is made twice."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from ...records import LinearLoss, Loss
from ..loss import loss, loss_and_grad, loss_and_grad_
from .rows import Chunk, Gradients, chunks
from .tokens import at_rows, rows_with_loss


def write_losses(of: LinearLoss[Any], losses: Tensor, implementation: str, structure: str) -> None:
    """Write the losses of ``N`` tokens, ``(N,)``, or ``(N, 3)`` with terms; 0 is there before."""
    make = loss.kernel(implementation, structure)
    for chunk in _chunks(of, 1):
        losses[chunk.rows] = make(_of_chunk(of, chunk), "none")


def write_gradients(
    of: LinearLoss[Any],
    losses: Tensor,
    gradients: Gradients,
    implementation: str,
    structure: str,
) -> None:
    """Write the losses, and the gradients of their sum; 0 is there before."""
    make, copies = _gradient_of(implementation, structure)
    for chunk in _chunks(of, copies):
        losses[chunk.rows], grad = make(_of_chunk(of, chunk))
        gradients.add(chunk, of.head, grad)


def _gradient_of(implementation: str, structure: str) -> tuple[Any, int]:
    """Return what makes losses and gradients of logits, and how many tensors of their size."""
    if loss_and_grad_.is_served(implementation, structure):
        return loss_and_grad_.kernel(implementation, structure), 1
    kernel = loss_and_grad.kernel(implementation, structure)
    return lambda of: kernel(of, "none", False), 2


def _chunks(of: LinearLoss[Any], copies: int) -> Iterator[Chunk]:
    chosen = rows_with_loss(of)
    counts = of.counts if chosen is None else None
    return chunks(of.hidden, of.head, chosen, counts, copies)


def _of_chunk(of: LinearLoss[Any], chunk: Chunk) -> Loss[Any]:
    return at_rows(of, chunk.rows).of(chunk.logits)
