"""The library of registered operations, ``torch.ops.d3pm_fast.*``."""

import torch
from torch import Tensor

from ..reference.logspace import compute_dtype

library = torch.library.Library("d3pm_fast", "DEF")


def pointer(tensor: Tensor | None) -> int:
    """Return where a tensor's numbers are, 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def empty_loss(logits: Tensor, x0: Tensor, reduction: str) -> Tensor:
    """Return room for the loss of each token, or for their sum or mean."""
    shape = x0.shape if reduction == "none" else ()
    return logits.new_empty(shape, dtype=compute_dtype(logits.dtype))
