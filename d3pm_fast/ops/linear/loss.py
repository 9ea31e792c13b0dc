"""``torch.ops.d3pm_fast.linear_loss`` and ``linear_loss_and_grad``: of logits that are not stored.

Both take the record of a loss with a head in place of logits, and make these for some tokens at a
time. What serves the logits serves the head. The gradients are of the tensors of the record, those
of weight and bias in float32 at least, and empty where they are not wanted.
"""

from typing import Any

import torch
from torch import Tensor

from ... import reference
from ...chains.structures import DENSE, RANK_ONE, SPARSE
from ...records import LinearLoss, ShardedLinearLoss, ShardedLoss
from ...reductions import divided, mean_of_divided, reduced
from ...reference.logspace import compute_dtype
from ..register import Operation
from . import by_rows, by_tiles
from .kernels import Kernels
from .rows import zero_gradients
from .tokens import as_rows, counted, with_loss

_SCHEDULES: dict[str, Any] = {"rows": by_rows, "tiles": by_tiles}
FourTensors = tuple[Tensor, Tensor, Tensor, Tensor]


def fake_loss(of: LinearLoss[Any], reduction: str) -> Tensor:
    """Return a loss without its numbers."""
    shape = *(of.x0.shape if reduction == "none" else ()), *((3,) if of.with_terms else ())
    return of.hidden.new_empty(shape, dtype=compute_dtype(of.head.dtype))


def fake_loss_and_grad(of: LinearLoss[Any], reduction: str, late: bool) -> FourTensors:
    """Return a loss and its gradients without their numbers."""
    return fake_loss(of, reduction), *zero_gradients(*of[:2])


def _fake_sharded(of: ShardedLinearLoss[Any], reduction: str) -> Tensor:
    return fake_loss(of.of, reduction)


def _fake_sharded_and_grad(of: ShardedLinearLoss[Any], reduction: str, late: bool) -> FourTensors:
    return fake_loss_and_grad(of.of, reduction, late)


linear_loss = Operation("linear_loss", fake_loss)
linear_loss_and_grad = Operation("linear_loss_and_grad", fake_loss_and_grad)
sharded_linear_loss = Operation("sharded_linear_loss", _fake_sharded)
sharded_linear_loss_and_grad = Operation("sharded_linear_loss_and_grad", _fake_sharded_and_grad)


def _served_by(implementation: str, structure: str) -> Any:
    """Return both operations: the loss alone, or with ``late`` the loss and its gradients."""

    def run(of: LinearLoss[Any], reduction: str, late: bool | None = None) -> Any:
        schedule, kernels = _SCHEDULES[of.head.schedule], Kernels(implementation, structure)
        return _run(of, reduction, late, schedule, kernels)

    return run


def _sharded_by(implementation: str) -> Any:
    """Return both operations on a head whose classes are sharded."""

    def run(sharded: ShardedLinearLoss[Any], reduction: str, late: bool | None = None) -> Any:
        of, sharding, redraws = sharded
        schedule, kernels = (
            by_rows.Shards(sharding, redraws),
            Kernels(implementation, RANK_ONE.name),
        )
        return _run(of, reduction, late, schedule, kernels)

    return run


def _run(
    of: LinearLoss[Any], reduction: str, late: bool | None, schedule: Any, kernels: Kernels
) -> Any:
    count, divides = counted(of), reduction == "mean" and late is False
    with torch.autocast(of.hidden.device.type, enabled=False):
        some, rows = with_loss(as_rows(of))
        if divides:
            weights = divided(some.weights, count, some.x0, compute_dtype(of.head.dtype))
            some = some._replace(weights=weights)
        if late is None:
            losses, gradients = schedule.losses(some, kernels), None
        else:
            losses, gradients = schedule.losses_and_gradients(some, kernels)
    losses = _at(rows, losses, fake_loss(of, "none"))
    value = (
        mean_of_divided(losses, count, of.with_terms)
        if divides
        else reduced(losses, reduction, count, of.with_terms)
    )
    if gradients is None:
        return value
    of_hidden, *of_head = gradients
    return value, _at(rows, of_hidden, of.hidden) if of.head.pulls_hidden else of_hidden, *of_head


def _at(rows: Tensor | None, values: Tensor, like: Tensor) -> Tensor:
    """Return what there is of some of ``N`` rows in its places, in the shape of the tokens."""
    if rows is not None:
        every = values.new_zeros(like.shape).view(-1, *values.shape[1:])
        every[rows] = values
        values = every
    return values.view(like.shape)


def _by_reference(of: LinearLoss[Any], reduction: str) -> Tensor:
    """Return the loss of the logits, which are made as a whole."""
    head = of.head
    made = head.weight, head.bias, head.num_logits, head.filled
    return reference.loss(of.of(reference.linear_logits(of.hidden, *made)), reduction)


def _sharded_by_reference(sharded: ShardedLinearLoss[Any], reduction: str) -> Tensor:
    """Return the loss of logits that are made of all rows, and gathered."""
    of, sharding, redraws = sharded
    head = of.head
    logits = reference.linear_logits(of.hidden, head.weight, head.bias, head.num_logits)
    return reference.sharded_loss(ShardedLoss(of.of(logits), sharding, redraws), reduction)


linear_loss.serve("reference", _by_reference, [RANK_ONE, DENSE, SPARSE])
sharded_linear_loss.serve("reference", _sharded_by_reference, [RANK_ONE])
for implementation, structures in (
    ("cpu", [RANK_ONE, DENSE, SPARSE]),
    ("triton", [RANK_ONE, DENSE, SPARSE]),
    ("cuda", [RANK_ONE]),
):
    for structure in structures:
        served = _served_by(implementation, structure.name)
        for operation in (linear_loss, linear_loss_and_grad):
            operation.serve(implementation, served, [structure])

for implementation in ("cpu", "triton"):
    served = _sharded_by(implementation)
    for operation in (sharded_linear_loss, sharded_linear_loss_and_grad):
        operation.serve(implementation, served, [RANK_ONE], is_registered=False)
