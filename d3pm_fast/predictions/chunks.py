"""Items of a batch a chunk at a time, whose logits stay in the cache until they are read."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from .._no_law import NoLaw

Result = TypeVar("Result", Tensor, tuple[Tensor, Tensor])

CHUNK_BYTES = {"cpu": 1 << 21, "cuda": 1 << 25}  # what the cache holds until it is read


def chunks(size: int, *tensors: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """Yield the tensors of a chunk of items, then of the next; the first one is not None.

    Args:
        size: of a chunk, at least 1.
        tensors: their first axis is the batch.
    """
    first = tensors[0]
    assert first is not None
    size = max(size, 1)
    for start in range(0, max(len(first), 1), size):
        part = slice(start, start + size)
        yield tuple(None if x is None else x[part] for x in tensors)


def in_chunks(size: int, operation: Callable[..., Result], *tensors: Tensor | None) -> Result:
    """Return an operation's result, or several, on all items; their first axis is the batch."""
    done, results = 0, []
    for part in chunks(size, *tensors):
        try:
            results.append(operation(*part))
        except NoLaw as error:
            raise error.behind(done) from None
        done += len(part[0])
    if isinstance(results[0], Tensor):
        return torch.cat(results)
    first, second = (torch.cat(each) for each in zip(*results, strict=True))
    return first, second
