"""The signatures of the operations on tokens, and their registration by an implementation."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from .library import SHAPING, empty_loss, library


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


_FAKES: dict[str, Callable[..., Any]] = {
    "loss": _fake_loss,
    "loss_and_grad": _fake_loss_and_grad,
    "q_posterior": _fake_q_posterior,
    "p_posterior": _fake_p_posterior,
    "p_posterior_grad": _fake_p_posterior,
    "q_sample": _fake_q_sample,
    "p_sample": _fake_p_sample,
    "shaped_p_sample": _fake_p_sample,
}


def _signatures(chain: str, q_chain: str) -> dict[str, str]:
    model = "bool posterior_mean, bool direct"
    loss = (
        f"Tensor logits, Tensor x0, Tensor? mask, Tensor x_t, {chain}, {model}, "
        "float vb_weight, float ce_weight"
    )
    random = "Tensor seeds, int step"
    return {
        "loss": f"({loss}, str reduction) -> Tensor",
        "loss_and_grad": f"({loss}, str reduction, bool late) -> (Tensor, Tensor)",
        "q_posterior": (
            f"(Tensor x0, Tensor x_t, {chain}, int num_classes, ScalarType dtype) -> Tensor"
        ),
        "p_posterior": f"(Tensor logits, Tensor x_t, {chain}, {model}) -> Tensor",
        "p_posterior_grad": f"(Tensor logits, Tensor grad, Tensor x_t, {chain}, {model}) -> Tensor",
        "q_sample": f"(Tensor x, {q_chain}, {random}) -> Tensor",
        "p_sample": f"(Tensor logits, Tensor x_t, {chain}, {model}, {random}) -> Tensor",
        "shaped_p_sample": (
            f"(Tensor logits, Tensor x_t, {chain}, {model}, {random}, {SHAPING}) -> Tensor"
        ),
    }


class Operations:
    """``torch.ops.d3pm_fast.*`` of one implementation, under names with its prefix.

    Args:
        prefix: of the names.
        kernels: has a function for each operation.
        dispatch_key: of PyTorch's dispatcher.
        chain: the parameters that a chain's step has in an operation.
        q_chain: the parameters that a chain has in ``q_sample``.
        shapes: whether there is a ``shaped_p_sample``.
    """

    def __init__(
        self,
        prefix: str,
        kernels: Any,
        dispatch_key: str,
        chain: str,
        q_chain: str,
        shapes: bool = False,
    ) -> None:
        self._kernels = kernels
        signatures = _signatures(chain, q_chain)
        if not shapes:
            del signatures["shaped_p_sample"]
        for name, signature in signatures.items():
            library.define(f"{prefix}{name}{signature}")
            library.impl(f"{prefix}{name}", getattr(kernels, name), dispatch_key)
            torch.library.register_fake(f"d3pm_fast::{prefix}{name}", _FAKES[name], lib=library)
        ops = torch.ops.d3pm_fast
        self.loss, self.q_posterior, self.p_posterior, self.p_posterior_grad, self.p_sample = (
            getattr(ops, prefix + name)
            for name in ("loss", "q_posterior", "p_posterior", "p_posterior_grad", "p_sample")
        )
        self._loss_and_grad = getattr(ops, f"{prefix}loss_and_grad")
        self._q_sample = getattr(ops, f"{prefix}q_sample")
        if shapes:
            self.shaped_p_sample = getattr(ops, f"{prefix}shaped_p_sample")

    def loss_and_grad(self, logits: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        """Call the operation; past PyTorch's dispatcher where there is nothing for it to do."""
        if type(logits) is not Tensor or is_compiling():
            return self._loss_and_grad(logits, *args)  # type: ignore[no-any-return]
        return self._kernels.loss_and_grad(logits, *args)  # type: ignore[no-any-return]
