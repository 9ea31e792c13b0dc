"""``torch.ops.d3pm_fast.logistic_logits`` and ``logistic_gradient``.

``loc`` and ``log_scale`` are ``(B, *S)`` of one dtype, the logits ``(B, *S, K)``.
"""

import torch
from torch import Tensor

from .. import reference
from .._compiled import cpu
from ..reference.logspace import compute_dtype
from .kernel import triton_kernel
from .register import Operation


def _fake_logits(loc: Tensor, log_scale: Tensor, num_classes: int, edge_corrected: bool) -> Tensor:
    return loc.new_empty((*loc.shape, num_classes), dtype=compute_dtype(loc.dtype))


def _fake_gradient(
    loc: Tensor, log_scale: Tensor, upstream: Tensor, edge_corrected: bool
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(loc), torch.empty_like(log_scale)


logistic_logits = Operation("logistic_logits", _fake_logits)
logistic_gradient = Operation("logistic_gradient", _fake_gradient)


def _logits_on_cpu(
    loc: Tensor, log_scale: Tensor, num_classes: int, edge_corrected: bool
) -> Tensor:
    out = _fake_logits(loc, log_scale, num_classes, edge_corrected)
    call = _record(loc, log_scale, num_classes, edge_corrected), out.data_ptr()
    cpu.logistic_logits(str(loc.dtype), call, torch.get_num_threads())
    return out


def _gradient_on_cpu(
    loc: Tensor, log_scale: Tensor, upstream: Tensor, edge_corrected: bool
) -> tuple[Tensor, Tensor]:
    out_loc, out_log_scale = out = _fake_gradient(loc, log_scale, upstream, edge_corrected)
    logistic = _record(loc, log_scale, upstream.shape[-1], edge_corrected)
    call = logistic, upstream.data_ptr(), out_loc.data_ptr(), out_log_scale.data_ptr()
    cpu.logistic_gradient(str(loc.dtype), call, torch.get_num_threads())
    return out


def _record(
    loc: Tensor, log_scale: Tensor, num_classes: int, edge_corrected: bool
) -> tuple[int, int, bool, int, int]:
    return loc.numel(), num_classes, edge_corrected, loc.data_ptr(), log_scale.data_ptr()


logistic_logits.serve("reference", reference.logistic_logits)
logistic_logits.serve("cpu", _logits_on_cpu)
logistic_logits.serve("triton", triton_kernel("predictions.logistic.logits"))

logistic_gradient.serve("cpu", _gradient_on_cpu)
logistic_gradient.serve("triton", triton_kernel("predictions.logistic.gradient"))
