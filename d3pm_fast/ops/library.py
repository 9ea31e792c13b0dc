"""The library of registered operations, ``torch.ops.d3pm_fast.*``."""

from collections.abc import Callable
from contextlib import nullcontext
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from .. import _compiled
from ..reference.logspace import compute_dtype

library = torch.library.Library("d3pm_fast", "DEF")

# How logits are shaped: see d3pm_fast.shaped.arguments_of.
SHAPING = "Tensor? unconditional, float guidance, float temperature, int top_k, float top_p"


class Deferred:
    """The functions of a module that is not imported before one of them is called.

    So operations are registered where torch.compile does not see it, without their kernels.
    """

    def __init__(self, module: str) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            return getattr(import_module(self._module), name)(*args)

        return call


def pointer(tensor: Tensor | None) -> int:
    """Return where a tensor's numbers are, 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def start_cuda(name: str, on: Tensor, *args: Any) -> None:
    """Call the CUDA module's function on the tensor's device and its current stream."""
    if on.numel() == 0:
        return
    stream = torch.cuda.current_stream(on.device).cuda_stream if on.is_cuda else 0
    with torch.cuda.device_of(on) if on.is_cuda else nullcontext():
        getattr(_compiled.cuda, name)(*args, stream)


def reduced(token_loss: Tensor, count: Tensor | None, reduction: str) -> Tensor:
    """Return the losses, their sum, or their mean over ``count`` tokens, over all for None.

    The mean of no token is NaN, as that of ``F.cross_entropy``.
    """
    if reduction == "none":
        return token_loss
    total = token_loss.sum(dtype=torch.float64)
    if reduction == "mean":
        total = total / (token_loss.numel() if count is None else count)
    return total.to(token_loss.dtype)


def empty_loss(logits: Tensor, x0: Tensor, reduction: str) -> Tensor:
    """Return room for the loss of each token, or for their sum or mean."""
    shape = x0.shape if reduction == "none" else ()
    return logits.new_empty(shape, dtype=compute_dtype(logits.dtype))
