"""Operations on predictions of x_0 whose K logits exist for a chunk of items at a time."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

CHUNK_BYTES = {"cpu": 1 << 21, "cuda": 1 << 25}  # what the cache holds until it is read


class Call(NamedTuple):
    """An operation on logits that are made of parameters, for items of a batch at a time.

    Attributes:
        item_bytes: the size of an item's logits.
        logits: makes the logits of some items from their parameters.
        items: maps a slice of the batch to the operation's arguments after the logits.
    """

    item_bytes: int
    logits: Callable[..., Tensor]
    items: Callable[[slice], tuple[Any, ...]]

    def chunks(
        self, first: Tensor, second: Tensor | None
    ) -> Iterator[tuple[slice, tuple[Tensor, Any]]]:
        """Yield slices of the batch, and of both parameters; None stays."""
        chunk_bytes = CHUNK_BYTES.get(first.device.type, CHUNK_BYTES["cuda"])
        size = max(chunk_bytes // max(self.item_bytes, 1), 1)
        for start in range(0, max(len(first), 1), size):
            part = slice(start, start + size)
            yield part, (first[part], None if second is None else second[part])


def apply(
    operation: Callable[..., Tensor], parameters: tuple[Tensor, Tensor | None], call: Call
) -> Tensor:
    """Return an operation's result; its first dimension is the batch."""
    return torch.cat(
        [
            operation(call.logits(*chunk), *call.items(part))
            for part, chunk in call.chunks(*parameters)
        ]
    )
