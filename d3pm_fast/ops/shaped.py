"""The operation that shapes logits for sampling: see :class:`d3pm_fast.functional.Shaped`."""

from collections.abc import Callable

import torch
from torch import Tensor

from .. import reference
from .._compiled import cpu
from ..reference.logspace import compute_dtype
from .library import SHAPING, Deferred, library, pointer


def _shaped_logits(
    logits: Tensor,
    unconditional: Tensor | None,
    guidance: float,
    temperature: float,
    top_k: int,
    top_p: float,
) -> Tensor:
    out = _empty(logits)
    num_classes = logits.shape[-1]
    cpu.shaped_logits(
        str(logits.dtype),
        logits.numel() // num_classes,
        num_classes,
        logits.data_ptr(),
        (pointer(unconditional), guidance, temperature, top_k, top_p),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


def _empty(logits: Tensor, *args: object) -> Tensor:
    return torch.empty_like(logits, dtype=compute_dtype(logits.dtype))


def _register(name: str, kernel: Callable[..., Tensor], dispatch_key: str) -> Callable[..., Tensor]:
    library.define(f"{name}(Tensor logits, {SHAPING}) -> Tensor")
    library.impl(name, kernel, dispatch_key)
    torch.library.register_fake(f"d3pm_fast::{name}", _empty, lib=library)
    return getattr(torch.ops.d3pm_fast, name)  # type: ignore[no-any-return]


_on_cpu = _register("shaped_logits", _shaped_logits, "CPU")
_by_triton = _register(
    "triton_shaped_logits",
    Deferred("d3pm_fast.kernels.shaped").shaped_logits,
    "CompositeExplicitAutograd",
)


def operation(name: str) -> Callable[..., Tensor]:
    """Return the operation of an implementation; that of "cuda" is plain PyTorch's."""
    if name == "triton":
        return _by_triton
    return _on_cpu if name == "cpu" else reference.shaped_logits
