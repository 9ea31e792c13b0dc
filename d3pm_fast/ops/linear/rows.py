"""Logits by chunks of rows: made, turned into their gradient by whoever takes them, pulled back.

Nothing of the size of all logits is made. A gradient that all rows share is read and written once a
chunk, so chunks are as large as the budget lets them be.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ...records import Head
from ...reference.logspace import compute_dtype
from .products import add_product, add_to_bias, logits_into, pull_hidden

MULTIPLE = 64  # of rows, which matmuls have in blocks


class Chunk(NamedTuple):
    """Some of ``N`` rows: which, their hidden states ``(n, D)`` and their logits ``(n, K)``."""

    rows: slice
    hidden: Tensor
    logits: Tensor


class Gradients(NamedTuple):
    """Of hidden ``(N, D)``, weight and bias; empty if not wanted."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor

    def add(self, chunk: Chunk, head: Head, grad: Tensor) -> None:
        """Add what a chunk has from the gradient of its logits; its rows of hidden are written."""
        grad = grad[:, : len(head.weight)]
        if self.hidden.numel():
            _write_hidden(self.hidden[chunk.rows], grad, head.weight)
        if self.weight.numel():
            add_product(self.weight, grad.T, chunk.hidden)
        if self.bias.numel():
            add_to_bias(self.bias, grad)


def zero_gradients(hidden: Tensor, head: Head) -> Gradients:
    """Return zeros for the gradients that are wanted, of hidden in its own shape.

    That of the weight has the dtype of a sum over chunks, or of the products where it is written at
    once.
    """
    total = compute_dtype(head.dtype)
    written = total if head.schedule == "rows" else head.dtype
    has_bias = head.bias is not None
    shapes = hidden.shape, head.weight.shape, head.weight.shape[:1]
    wanted = head.pulls_hidden, head.pulls_weight, head.pulls_weight and has_bias
    dtypes = hidden.dtype, written, total
    return Gradients(
        *(
            hidden.new_zeros(shape if is_wanted else (0,), dtype=dtype)
            for shape, is_wanted, dtype in zip(shapes, wanted, dtypes, strict=True)
        )
    )


def in_own_dtype(head: Head) -> Head:
    """Return a head with its tensors in the dtype of its products."""
    bias = None if head.bias is None else head.bias.to(head.dtype)
    return head._replace(weight=head.weight.to(head.dtype), bias=bias)


def chunks(
    hidden: Tensor,
    head: Head,
    copies: int = 1,
    counts_as: int | None = None,
) -> Iterator[Chunk]:
    """Yield the logits of all rows, chunk by chunk.

    Args:
        hidden: ``(N, D)``.
        head: in its own dtype.
        copies: how many tensors of the size of a chunk's logits there are at most.
        counts_as: how many classes the budget is shared out for; None for as many as there are.
    """
    num_rows = len(hidden)
    columns = len(head.weight) if head.filled < 0 else head.num_logits
    row_bytes = (columns if counts_as is None else counts_as) * head.dtype.itemsize * copies
    size = _chunk_rows(num_rows, row_bytes, head.memory_budget)
    room = torch.empty(size, columns, dtype=head.dtype, device=hidden.device)
    for start in range(0, num_rows, size):
        rows = slice(start, min(start + size, num_rows))
        part = hidden[rows].to(head.dtype)
        logits = room[: len(part)]
        logits_into(logits[:, : len(head.weight)], part, head.weight, head.bias)
        if head.filled >= 0:
            logits[:, head.filled] = -torch.inf
        yield Chunk(rows, part, logits)


def _write_hidden(to: Tensor, grad: Tensor, weight: Tensor) -> None:
    made = to if to.dtype == grad.dtype else grad.new_empty(to.shape)
    pull_hidden(made, grad, weight)
    if made is not to:
        to.copy_(made)


def _chunk_rows(num_rows: int, row_bytes: int, budget: int) -> int:
    """Return how many rows a chunk has: all have about as many, within the budget."""
    most = max(budget // max(row_bytes, 1), 1)
    if num_rows <= most:
        return max(num_rows, 1)
    num_chunks = -(-num_rows // most)
    even = -(-num_rows // num_chunks)
    return min(-(-even // MULTIPLE) * MULTIPLE, most)
