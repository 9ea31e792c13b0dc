"""``torch.ops.d3pm_fast.shaped_logits``: see :class:`d3pm_fast.functional.Shaped`."""

import torch
from torch import Tensor

from .. import reference
from .._compiled import cpu
from ..records import Shaping
from ..reference.logspace import compute_dtype
from .host import shaping_record
from .kernel import triton_kernel
from .register import Operation


def _fake_shaped_logits(logits: Tensor, shaping: Shaping) -> Tensor:
    return torch.empty_like(logits, dtype=compute_dtype(logits.dtype))


shaped_logits = Operation("shaped_logits", _fake_shaped_logits)


def _on_cpu(logits: Tensor, shaping: Shaping) -> Tensor:
    out, num_classes = _fake_shaped_logits(logits, shaping), logits.shape[-1]
    shape = logits.numel() // num_classes, num_classes
    call = *shape, logits.data_ptr(), shaping_record(shaping), out.data_ptr()
    cpu.shaped_logits(str(logits.dtype), call, torch.get_num_threads())
    return out


shaped_logits.serve("reference", reference.shaped_logits)
shaped_logits.serve("cpu", _on_cpu)
shaped_logits.serve("triton", triton_kernel("predictions.shaped.shaped_logits"))
