"""A prediction by a head whose classes are sharded over the ranks of a process group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import derivatives, ops
from .._collectives import SumGradient
from ..autograd import LossOperation
from ..chains import Transition
from ..chains.structures import RANK_ONE
from ..derivatives import Inputs, Items
from ..records import ShardedLinearLoss, Sharding
from .linear import Linear, LinearPrediction
from .prediction import Classes, Operations, Prediction
from .sharded import ShardedPrediction

_OPERATIONS = Operations(
    ops.sharded_linear_loss,
    ops.sharded_linear_loss_and_grad,
    ops.p_posterior,
    ops.p_posterior_grad,
    ops.p_sample,
)


class ShardedLinearPrediction(LinearPrediction):
    """Hidden states, the same on all ranks, and the rows of the head of this rank."""

    def __init__(self, given: Linear, classes: Classes, sharding: Sharding, redraws: bool) -> None:
        super().__init__(given, classes)
        self._sharding, self._redraws = sharding, redraws

    @property
    def operations(self) -> Operations:
        """The operations on shards."""
        return _OPERATIONS

    @property
    def num_rows(self) -> int:
        """How many rows the weight has here."""
        return self._sharding.num_here

    def check(self, shape: torch.Size) -> None:
        """Raise unless hidden is ``(*shape, D)``, and the head is of it and has K rows."""
        number, forbidden, *_ = self.classes
        whole = self._sharding.num_logits
        if whole != number and not whole == forbidden == number - 1:
            raise ValueError(f"weight must have {number} rows on all ranks, got {whole}")
        super().check(shape)

    def check_chain(self, transition: Transition) -> None:
        """Raise unless the chain is of rank one."""
        if transition.structure != RANK_ONE.name:
            raise ValueError(
                f"a sharded head needs a rank-one chain, got {transition.family}: gather it"
            )

    def check_loss(self, transition: Transition, ce_weight: float | Tensor) -> None:
        """Raise where the schedule does not serve shards."""
        if self.given.schedule != "rows":
            raise ValueError(f"a sharded head needs schedule='rows', got {self.given.schedule!r}")

    def whole(self) -> ShardedPrediction:
        """Return the logits, for what is as large as they are."""
        logits = self.meaning(*self.parameters)
        return ShardedPrediction(logits, self.classes, self._sharding, self._redraws).whole()

    def served_by(self, implementation: str, _reads_classes_first: bool = False) -> Prediction:
        """Return it contiguous."""
        if derivatives.are_asked(*self.parameters):
            raise ValueError(
                "a sharded head has gradients only, no forward mode and no transforms of "
                "torch.func: gather it"
            )
        if implementation == "reference":
            return self
        return super().served_by(implementation)

    def loss_record(self, inputs: Inputs, others: tuple[Any, ...]) -> ShardedLinearLoss[Any]:
        """Return what a loss is of, from the parameters and what comes after them."""
        of = super().loss_record(inputs, others)
        return ShardedLinearLoss(of, self._sharding, self._redraws)

    def loss(self, of_logits: LossOperation) -> LossOperation:
        """Return the loss, whose gradients have no derivatives."""
        made = of_logits if of_logits.with_gradient is None else super().loss(of_logits)
        return made._replace(reference=_no_derivative)

    def _with(self, *parameters: Tensor) -> ShardedLinearPrediction:
        given = super()._with(*parameters).given
        return ShardedLinearPrediction(given, self.classes, self._sharding, self._redraws)


def sharded_linear(given: Linear, classes: Classes, redraws: bool) -> ShardedLinearPrediction:
    """Return a prediction by a DTensor of weights, unchecked but for its placements."""
    weight: Any = given.weight
    mesh, placements = weight.device_mesh, weight.placements
    axes = [axis for axis, placement in enumerate(placements) if placement.is_shard(0)]
    others = [p for axis, p in enumerate(placements) if axis not in axes]
    if len(axes) != 1 or not all(placement.is_replicate() for placement in others):
        raise ValueError(
            "weight as a DTensor must be sharded over classes, Shard(0), on one mesh dimension, "
            f"got {placements}: redistribute it"
        )
    bias: Any = given.bias
    if bias is not None and getattr(bias, "placements", None) != placements:
        raise ValueError(f"bias must be placed as weight is, {placements}: redistribute it")
    (axis,) = axes
    group, num_logits = mesh.get_group(axis), len(weight)
    sharding = Sharding(group, -(-num_logits // mesh.size(axis)), num_logits)
    hidden: Any = given.hidden
    if hasattr(hidden, "device_mesh"):
        hidden = _local_hidden(hidden, axis)
    elif isinstance(hidden, Tensor) and torch.is_grad_enabled():
        hidden = SumGradient.apply(hidden, group)  # type: ignore[no-untyped-call]
    local = None if bias is None else bias.to_local()
    return ShardedLinearPrediction(
        Linear(hidden, weight.to_local(), local, *given[3:]), classes, sharding, redraws
    )


def _local_hidden(hidden: Any, axis: int) -> Tensor:
    """Return hidden states that are whole on a mesh dimension; their gradient is a sum over it."""
    placements = list(hidden.placements)
    if not placements[axis].is_replicate():
        raise ValueError(
            f"hidden as a DTensor must be Replicate() where weight is sharded, got {placements}: "
            "redistribute it, whose backward pass is a reduce-scatter"
        )
    from torch.distributed.tensor import Partial

    placements[axis] = Partial()
    return hidden.to_local(grad_placements=placements)  # type: ignore[no-any-return]


def _no_derivative(_items: Items) -> Callable[..., Tensor]:
    raise ValueError("the gradients of a sharded head have no derivatives: gather it")
