"""``torch.ops.d3pm_fast.shaped_logits``: see :class:`d3pm_fast.functional.Shaped`."""

from typing import Any

import torch
from torch import Tensor

from .. import reference
from .._compiled import cpu
from ..records import Shaping
from ..reference.logspace import compute_dtype
from .host import pointer
from .register import Operation


def _fake_shaped_logits(logits: Tensor, shaping: Shaping) -> Tensor:
    return torch.empty_like(logits, dtype=compute_dtype(logits.dtype))


shaped_logits = Operation("shaped_logits", _fake_shaped_logits)


def _on_cpu(logits: Tensor, shaping: Shaping) -> Tensor:
    out, num_classes = _fake_shaped_logits(logits, shaping), logits.shape[-1]
    cpu.shaped_logits(
        str(logits.dtype),
        logits.numel() // num_classes,
        num_classes,
        logits.data_ptr(),
        (pointer(shaping.unconditional), *shaping[1:]),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


def _triton() -> Any:
    from ..kernels.predictions import shaped

    return shaped


shaped_logits.serve("reference", reference.shaped_logits)
shaped_logits.serve("cpu", _on_cpu)
shaped_logits.serve("triton", lambda *args: _triton().shaped_logits(*args))
