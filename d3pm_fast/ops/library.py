"""The library of registered operations, ``torch.ops.d3pm_fast.*``."""

import torch
from torch import Tensor

from ..reference.logspace import compute_dtype

library = torch.library.Library("d3pm_fast", "DEF")


def pointer(tensor: Tensor | None) -> int:
    """Return where a tensor's numbers are, 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def reduced(token_loss: Tensor, count: Tensor | None, reduction: str) -> Tensor:
    """Return the losses, their sum, or their mean over ``count`` tokens, over all for None."""
    if reduction == "none":
        return token_loss
    total = token_loss.sum(dtype=torch.float64)
    if reduction == "mean":
        total = total / (max(token_loss.numel(), 1) if count is None else count)
    return total.to(token_loss.dtype)


def empty_loss(logits: Tensor, x0: Tensor, reduction: str) -> Tensor:
    """Return room for the loss of each token, or for their sum or mean."""
    shape = x0.shape if reduction == "none" else ()
    return logits.new_empty(shape, dtype=compute_dtype(logits.dtype))
