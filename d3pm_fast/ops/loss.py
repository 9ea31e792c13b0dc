"""``torch.ops.d3pm_fast.loss`` and ``loss_and_grad``: who serves them, and how each is called."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import reference
from .._compiled import cpu
from ..chains.structures import DENSE, RANK_ONE, SPARSE, RankOneStep
from ..records import Loss
from ..reductions import reduced
from ..reference.logspace import compute_dtype
from .dense import loss as dense
from .host import chain_record, loss_record, pi_in, raise_bad_token, start_cuda
from .kernel import triton_kernel
from .register import Operation


def fake_loss(of: Loss[Any], reduction: str) -> Tensor:
    """Return a loss without its numbers."""
    shape = *(of.x0.shape if reduction == "none" else ()), *((3,) if of.with_terms else ())
    return of.logits.new_empty(shape, dtype=compute_dtype(of.logits.dtype))


def fake_loss_and_grad(of: Loss[Any], reduction: str, late: bool) -> tuple[Tensor, Tensor]:
    """Return a loss and its gradient without their numbers."""
    return fake_loss(of, reduction), torch.empty_like(of.logits)


def fake_loss_and_grad_(of: Loss[Any]) -> tuple[Tensor, Tensor]:
    """Return the loss of each token without its numbers, and the logits."""
    return fake_loss(of, "none"), of.logits


loss = Operation("loss", fake_loss)
loss_and_grad = Operation("loss_and_grad", fake_loss_and_grad)
loss_and_grad_ = Operation("loss_and_grad_", fake_loss_and_grad_)  # in the place of the logits


# All operations, by one function: the loss alone, or with ``late`` the loss and its gradient, which
# is new unless there is room for it.


def _on_cpu(
    of: Loss[RankOneStep], reduction: str, late: bool | None = None, room: Tensor | None = None
) -> Any:
    grad = room
    if late is not None and room is None:
        grad = torch.empty_like(of.logits)
    value = fake_loss(of, reduction)
    pi = pi_in(of.step, of.logits.dtype)
    chain = chain_record(of.x0.numel(), of.step, pi, of.step.forbidden)
    call = loss_record(of, chain, value, grad)
    if cpu.loss(str(of.logits.dtype), call, reduction, bool(late), torch.get_num_threads()):
        raise_bad_token(of)
    return value if grad is None else (value, grad)


def _on_cuda(of: Loss[RankOneStep], reduction: str, late: bool | None = None) -> Any:
    def start(call: tuple[Any, ...]) -> None:
        start_cuda("loss", of.logits, str(of.logits.dtype), call)

    return by_tokens(start, of, reduction, late)


def by_tokens(
    compute: Callable[[tuple[Any, ...]], None],
    of: Loss[RankOneStep],
    reduction: str,
    late: bool | None,
) -> Any:
    """Return a loss, and with ``late`` its gradient, by code that leaves sums to PyTorch."""
    grad = None if late is None else torch.empty_like(of.logits)
    tokens = fake_loss(of, "none")
    mean = reduction == "mean"
    count = of.mask.sum().to(tokens.dtype) if mean and of.mask is not None else None
    divides = mean and not late
    scale = 1 / max(of.x0.numel(), 1) if divides and count is None else 1.0
    divisor = count if divides else None
    pi = pi_in(of.step, of.logits.dtype)
    chain = chain_record(of.x0.numel(), of.step, pi, of.step.forbidden)
    compute(loss_record(of, chain, tokens, grad, scale, divisor))
    value = reduced(tokens, reduction, count, of.with_terms)
    return value if grad is None else (value, grad)


def _in_place(kernel: Callable[..., Any]) -> Callable[[Loss[Any]], Any]:
    """Return the third operation from what takes room for a gradient."""
    return lambda of: kernel(of, "none", False, of.logits)


_TRITON = triton_kernel("rank_one.loss.loss")

loss.serve("reference", reference.loss, [RANK_ONE, DENSE, SPARSE])
loss.serve("cpu", _on_cpu, [RANK_ONE], reads_classes_first=True)
loss.serve("cuda", _on_cuda, [RANK_ONE])
loss.serve("triton", _TRITON, [RANK_ONE])
loss.serve("cpu", dense.loss, [DENSE, SPARSE])
loss.serve("triton", triton_kernel("dense.loss.loss"), [DENSE, SPARSE])

loss_and_grad.serve("cpu", _on_cpu, [RANK_ONE], reads_classes_first=True)
loss_and_grad_.serve("cpu", _in_place(_on_cpu), [RANK_ONE], is_registered=False)
loss_and_grad.serve("cuda", _on_cuda, [RANK_ONE])
loss_and_grad.serve("triton", _TRITON, [RANK_ONE])
loss_and_grad_.serve("triton", _in_place(_TRITON), [RANK_ONE], is_registered=False)
loss_and_grad.serve("cpu", dense.loss, [DENSE, SPARSE])
loss_and_grad.serve("triton", triton_kernel("dense.loss.loss"), [DENSE, SPARSE])
