"""The library of registered operations, ``torch.ops.d3pm_fast.*``, and the compiled module."""

import importlib
from typing import Any

import torch
from torch import Tensor

library = torch.library.Library("d3pm_fast", "DEF")

try:
    cpu: Any = importlib.import_module("d3pm_fast._cpu")
except ImportError:
    cpu = None


def pointer(tensor: Tensor | None) -> int:
    """Return where a tensor's numbers are, 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def loss_dtype(logits: Tensor) -> torch.dtype:
    """Return the dtype of a loss: float64 for float64 logits, float32 for all others."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def empty_loss(logits: Tensor, x0: Tensor, reduction: str) -> Tensor:
    """Return room for the loss of each token, or for their sum or mean."""
    shape = x0.shape if reduction == "none" else ()
    return logits.new_empty(shape, dtype=loss_dtype(logits))
