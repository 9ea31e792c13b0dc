"""The operations on the parameters of a truncated discretized logistic distribution.

``loc`` and ``log_scale`` are ``(B, *S)`` of one dtype, the logits ``(B, *S, K)``.
"""

from typing import Any

import torch
from torch import Tensor

from .._compiled import cpu
from ..reference.logspace import compute_dtype
from .library import library

library.define(
    "logistic_logits(Tensor loc, Tensor log_scale, int num_classes, bool edge_corrected) -> Tensor"
)
library.define(
    "logistic_gradient(Tensor loc, Tensor log_scale, Tensor grad, bool edge_corrected) "
    "-> (Tensor, Tensor)"
)


@torch.library.impl(library, "logistic_logits", "CPU")
def _logistic_logits(
    loc: Tensor, log_scale: Tensor, num_classes: int, edge_corrected: bool
) -> Tensor:
    out = _empty_logits(loc, num_classes)
    cpu.logistic_logits(
        str(loc.dtype),
        loc.numel(),
        num_classes,
        edge_corrected,
        loc.data_ptr(),
        log_scale.data_ptr(),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


@torch.library.impl(library, "logistic_gradient", "CPU")
def _logistic_gradient(
    loc: Tensor, log_scale: Tensor, grad: Tensor, edge_corrected: bool
) -> tuple[Tensor, Tensor]:
    out_loc, out_log_scale = torch.empty_like(loc), torch.empty_like(log_scale)
    cpu.logistic_gradient(
        str(loc.dtype),
        loc.numel(),
        grad.shape[-1],
        edge_corrected,
        loc.data_ptr(),
        log_scale.data_ptr(),
        grad.data_ptr(),
        out_loc.data_ptr(),
        out_log_scale.data_ptr(),
        torch.get_num_threads(),
    )
    return out_loc, out_log_scale


def _empty_logits(loc: Tensor, num_classes: int) -> Tensor:
    return loc.new_empty((*loc.shape, num_classes), dtype=compute_dtype(loc.dtype))


@torch.library.register_fake("d3pm_fast::logistic_logits")
def _(loc: Tensor, log_scale: Tensor, num_classes: int, *args: Any) -> Tensor:
    return _empty_logits(loc, num_classes)


@torch.library.register_fake("d3pm_fast::logistic_gradient")
def _(loc: Tensor, log_scale: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(loc), torch.empty_like(log_scale)


logits = torch.ops.d3pm_fast.logistic_logits
gradient = torch.ops.d3pm_fast.logistic_gradient
