"""The operations on the parameters of a truncated discretized logistic distribution.

``loc`` and ``log_scale`` are ``(B, *S)`` of one dtype, the logits ``(B, *S, K)``.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._compiled import cpu
from ..reference.logspace import compute_dtype
from .library import Deferred, library


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


def _fake_logits(loc: Tensor, log_scale: Tensor, num_classes: int, *args: Any) -> Tensor:
    return _empty_logits(loc, num_classes)


def _fake_gradient(loc: Tensor, log_scale: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(loc), torch.empty_like(log_scale)


class LogisticOperations(NamedTuple):
    """``torch.ops.d3pm_fast.*logistic_logits`` and ``logistic_gradient`` of one implementation."""

    logits: Callable[..., Tensor]
    gradient: Callable[..., tuple[Tensor, Tensor]]

    @classmethod
    def register(
        cls,
        prefix: str,
        logits: Callable[..., Tensor],
        gradient: Callable[..., tuple[Tensor, Tensor]],
        dispatch_key: str,
    ) -> "LogisticOperations":
        """Register the operations under names with a prefix."""
        parameters = "Tensor loc, Tensor log_scale"
        operations = {
            "logits": (f"({parameters}, int num_classes, bool edge_corrected) -> Tensor", logits),
            "gradient": (
                f"({parameters}, Tensor grad, bool edge_corrected) -> (Tensor, Tensor)",
                gradient,
            ),
        }
        fakes: dict[str, Callable[..., Any]]
        fakes = {"logits": _fake_logits, "gradient": _fake_gradient}
        made = []
        for kind, (signature, kernel) in operations.items():
            name = f"{prefix}logistic_{kind}"
            library.define(name + signature)
            library.impl(name, kernel, dispatch_key)
            torch.library.register_fake(f"d3pm_fast::{name}", fakes[kind], lib=library)
            made.append(getattr(torch.ops.d3pm_fast, name))
        return cls(*made)


_on_cpu = LogisticOperations.register("", _logistic_logits, _logistic_gradient, "CPU")


_kernels = Deferred("d3pm_fast.kernels.logistic")
_by_triton = LogisticOperations.register(
    "triton_", _kernels.logits, _kernels.gradient, "CompositeExplicitAutograd"
)


def operations(name: str) -> LogisticOperations | None:
    """Return the operations of an implementation; None for one that has none of its own."""
    if name == "triton":
        return _by_triton
    return _on_cpu if name == "cpu" else None
