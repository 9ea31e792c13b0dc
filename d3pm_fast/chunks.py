"""Operations on predictions of x_0 whose K logits exist for a chunk of items at a time."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._checks import NoLaw

CHUNK_BYTES = {"cpu": 1 << 21, "cuda": 1 << 25}  # what the cache holds until it is read


class Chunks(NamedTuple):
    """How logits are made of parameters, for items of a batch at a time.

    Attributes:
        logits: makes the logits of some items from their parameters.
        item_bytes: the size of an item's logits.
    """

    logits: Callable[..., Tensor]
    item_bytes: int

    def cut(self, *tensors: Tensor | None) -> Iterator[tuple[Any, ...]]:
        """Yield the tensors of a chunk of items, then of the next; the first one is not None."""
        first = tensors[0]
        assert first is not None
        chunk_bytes = CHUNK_BYTES.get(first.device.type, CHUNK_BYTES["cuda"])
        size = max(chunk_bytes // max(self.item_bytes, 1), 1)
        for start in range(0, max(len(first), 1), size):
            part = slice(start, start + size)
            yield tuple(None if x is None else x[part] for x in tensors)

    def apply(
        self, operation: Callable[..., Tensor], parameters: tuple[Any, ...], items: tuple[Any, ...]
    ) -> Tensor:
        """Return an operation's result on logits and items; its first dimension is the batch."""
        count, done = len(parameters), 0
        results = []
        for part in self.cut(*parameters, *items):
            try:
                results.append(operation(self.logits(*part[:count]), *part[count:]))
            except NoLaw as error:
                raise error.behind(done) from None
            done += len(part[0])
        return torch.cat(results)
