"""The operations on rank-one chains, of each implementation.

All take contiguous tensors: tokens ``(B, *S)`` int64, logits ``(B, *S, K)``, and ``rows``,
``(B,)`` or ``(B, *S)`` int64: the row of ``table`` with the coefficients of each token's step
(:meth:`~d3pm_fast.transitions.RankOneTransition.coefficients`). ``reference/`` says what each one
means.
"""

from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from ..transitions import RankOneTransition
from . import rank_one_cpu, rank_one_cuda
from .library import empty_loss, library

_CHAIN = "Tensor rows, Tensor table, Tensor? base, Tensor? base_cdf, int mask_id"
_MODEL = "bool posterior_mean, bool direct"
_LOSS = (
    f"Tensor logits, Tensor x0, Tensor? mask, Tensor x_t, {_CHAIN}, {_MODEL}, "
    "float vb_weight, float ce_weight"
)


def _fake_loss(logits: Tensor, x0: Tensor, *args: Any) -> Tensor:
    return empty_loss(logits, x0, args[-1])


def _fake_loss_and_grad(logits: Tensor, x0: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    return empty_loss(logits, x0, args[-2]), torch.empty_like(logits)


def _fake_q_posterior(x0: Tensor, *args: Any) -> Tensor:
    num_classes, dtype = args[-2:]
    return x0.new_empty(*x0.shape, num_classes, dtype=dtype)


def _fake_p_posterior(logits: Tensor, *args: Any) -> Tensor:
    return torch.empty_like(logits)


def _fake_q_sample(x: Tensor, *args: Any) -> Tensor:
    return torch.empty_like(x)


def _fake_p_sample(logits: Tensor, x_t: Tensor, *args: Any) -> Tensor:
    return torch.empty_like(x_t)


# Each with its arguments and results, and what makes the latter's shapes.
_OPERATIONS: dict[str, tuple[str, Callable[..., Any]]] = {
    "loss": (f"({_LOSS}, str reduction) -> Tensor", _fake_loss),
    "loss_and_grad": (
        f"({_LOSS}, str reduction, bool late) -> (Tensor, Tensor)",
        _fake_loss_and_grad,
    ),
    "q_posterior": (
        f"(Tensor x0, Tensor x_t, {_CHAIN}, int num_classes, ScalarType dtype) -> Tensor",
        _fake_q_posterior,
    ),
    "p_posterior": (
        f"(Tensor logits, Tensor x_t, {_CHAIN}, {_MODEL}) -> Tensor",
        _fake_p_posterior,
    ),
    "p_posterior_grad": (
        f"(Tensor logits, Tensor grad, Tensor x_t, {_CHAIN}, {_MODEL}) -> Tensor",
        _fake_p_posterior,
    ),
    "q_sample": (
        "(Tensor x, Tensor rows, Tensor table, Tensor? base_cdf, int mask_id, int num_classes, "
        "Tensor seeds, int step) -> Tensor",
        _fake_q_sample,
    ),
    "p_sample": (
        f"(Tensor logits, Tensor x_t, {_CHAIN}, {_MODEL}, Tensor seeds, int step) -> Tensor",
        _fake_p_sample,
    ),
}


class RankOneOperations:
    """``torch.ops.d3pm_fast.*`` of one implementation, under names with its prefix."""

    def __init__(self, prefix: str, kernels: ModuleType, dispatch_key: str) -> None:
        self._kernels = kernels
        for name, (signature, fake) in _OPERATIONS.items():
            library.define(f"{prefix}{name}{signature}")
            library.impl(f"{prefix}{name}", getattr(kernels, name), dispatch_key)
            torch.library.register_fake(f"d3pm_fast::{prefix}{name}", fake, lib=library)
        ops = torch.ops.d3pm_fast
        self.loss, self.q_posterior, self.p_posterior, self.p_posterior_grad, self.p_sample = (
            getattr(ops, prefix + name)
            for name in ("loss", "q_posterior", "p_posterior", "p_posterior_grad", "p_sample")
        )
        self._loss_and_grad = getattr(ops, f"{prefix}loss_and_grad")
        self._q_sample = getattr(ops, f"{prefix}q_sample")

    @staticmethod
    def chain(
        transition: RankOneTransition, t: Tensor, s: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, int]:
        """Return what the operations take after x_t."""
        rows, table = transition.step_rows(t, s)
        return rows, table, transition.base, transition.base_cdf, transition.mask_id

    def q_sample(self, x: Tensor, of: RankOneTransition, t: Tensor, *args: Any) -> Tensor:
        """Call the operation with what it needs of the transition."""
        table = of.products, of.base_cdf, of.mask_id, of.num_classes
        return self._q_sample(x, t, *table, *args)  # type: ignore[no-any-return]

    def loss_and_grad(self, logits: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        """Call the operation; past PyTorch's dispatcher where there is nothing for it to do."""
        if type(logits) is not Tensor or is_compiling():
            return self._loss_and_grad(logits, *args)  # type: ignore[no-any-return]
        return self._kernels.loss_and_grad(logits, *args)  # type: ignore[no-any-return]


cpu = RankOneOperations("", rank_one_cpu, "CPU")
cuda = RankOneOperations("cuda_", rank_one_cuda, "CompositeExplicitAutograd")


@cache
def triton() -> RankOneOperations:
    """Return the operations by Triton's kernels, which are not imported before."""
    from ..kernels import rank_one_ops

    return RankOneOperations("triton_", rank_one_ops, "CompositeExplicitAutograd")
