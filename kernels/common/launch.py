"""How kernels are started."""

from contextlib import nullcontext
from typing import Any

import torch
import triton.language as tl
from torch import Tensor


def triton_type(dtype: torch.dtype) -> tl.dtype:
    """Return Triton's name of float32 or float64."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def constant(record: Any) -> Any:
    """Return a record whose fields a kernel is compiled for."""
    return type(record)(*map(tl.constexpr, record))


def launch(
    kernel: Any, num_programs: int, on: Tensor, *args: Any, num_warps: int, num_stages: int = 3
) -> None:
    """Start a kernel on a tensor's device, on PyTorch's current stream there."""
    if num_programs == 0:
        return
    options = {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True}
    if torch.version.hip is None:
        # NVIDIA's assembler else spills some registers to fit one more program.
        options["maxnreg"] = min(65536 // (32 * num_warps), 255)
    with torch.cuda.device_of(on) if on.is_cuda else nullcontext():
        kernel[(num_programs,)](*args, **options)
