"""``torch.ops.d3pm_fast.gap``, the smallest operation on rows: the example of docs/design.md."""

import torch
from torch import Tensor

from .._checks import check_range
from .._compiled import cpu
from ..reference.gap import gap as by_reference
from ..reference.logspace import compute_dtype
from .host import start_cuda
from .kernel import triton_kernel
from .register import Operation


def _fake_gap(logits: Tensor, x: Tensor) -> Tensor:
    return logits.new_empty(x.shape, dtype=compute_dtype(logits.dtype))


gap = Operation("gap", _fake_gap)


def _on_cpu(logits: Tensor, x: Tensor) -> Tensor:
    out, num_classes = _fake_gap(logits, x), logits.shape[-1]
    call = x.numel(), num_classes, logits.data_ptr(), x.data_ptr(), out.data_ptr()
    if cpu.gap(str(logits.dtype), call, torch.get_num_threads()):
        check_range("x", x, 0, num_classes)
    return out


def _on_cuda(logits: Tensor, x: Tensor) -> Tensor:
    """Return the gap of each token; NaN where its class is bad."""
    out, num_classes = _fake_gap(logits, x), logits.shape[-1]
    call = x.numel(), num_classes, logits.data_ptr(), x.data_ptr(), out.data_ptr()
    start_cuda("gap", logits, str(logits.dtype), call)
    return out


gap.serve("reference", by_reference)
gap.serve("cpu", _on_cpu)
gap.serve("cuda", _on_cuda)
gap.serve("triton", triton_kernel("predictions.gap.gap"))
