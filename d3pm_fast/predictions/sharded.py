"""A prediction of x_0 by logits whose classes are sharded over the ranks of a process group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

from .. import derivatives, ops, reference
from .._checks import check_count, check_float
from ..autograd import LossOperation
from ..chains import Transition
from ..chains.structures import RANK_ONE
from ..derivatives import Inputs, Items
from ..records import Loss, ShardedLoss, ShardedStep, Sharding, TokenRandom
from .logits import LogitsPrediction
from .prediction import Classes, Operations, Prediction

__all__ = ["Sharded"]


class Sharded(NamedTuple):
    """Logits of which each rank of a process group has some classes, as tensor parallel heads do.

    In place of logits in losses, ``p_posterior``, ``p_sample`` and ``sample`` of rank-one chains.
    Rank r of the group has the classes from ``r * K_local`` on. Everything else is the same on all
    ranks: tokens, which hold classes of the whole vocabulary, times, masks, weights and seeds. All
    ranks of the group make the call, and backward too.

    The loss is the same on all ranks, bit by bit, and each gets the gradient of its own logits, as
    if the loss were there once. It is not divided by the number of ranks. The classes of a row
    never come together. A rank sends all others 20 bytes a row in float32 (16 where the chain has
    no mask), and once more 8 where tokens are redrawn, as in a uniform chain; in float64 twice as
    many.

    ``p_posterior`` gives the log-probabilities of this rank's classes, -inf in columns that are no
    class's. What ranks make of them adds up to one loss. A rank sends 12 bytes a row, and 8 in
    backward. Draws take 32 bytes a row. They are equal on all ranks, whatever their number, and the
    same as from whole logits with the same seeds, but where a random number is within rounding of
    float64 of the border of two classes. Both are in plain PyTorch.

    Attributes:
        local_logits: ``(B, *S, K_local)``, float32, float64, bfloat16 or float16, K_local the same
            on all ranks.
        group: of processes; None for the default one.
        num_classes: how many classes have a column, the first ones; K unless the chain's data
            never hold the last class. Columns behind them, of a padded vocabulary, count as -inf,
            whatever they hold, and their gradient is 0. None where there are none.
    """

    local_logits: Tensor
    group: Any = None
    num_classes: int | None = None


_OPERATIONS = Operations(
    ops.sharded_loss, ops.sharded_loss_and_grad, ops.sharded_posterior, None, ops.sharded_p_sample
)


class ShardedPrediction(LogitsPrediction):
    """The logits ``(B, *S, K_local)`` of this rank, once served without those that are none."""

    def __init__(self, given: Tensor, classes: Classes, sharding: Sharding, redraws: bool) -> None:
        super().__init__(given, classes)
        self._sharding, self._redraws = sharding, redraws

    @property
    def shape(self) -> tuple[int, ...] | None:  # type: ignore[override]
        """The shape of the tokens."""
        return super().shape if isinstance(self.given, Tensor) else None

    @property
    def operations(self) -> Operations:
        """The operations on shards."""
        return _OPERATIONS

    def check(self, shape: torch.Size) -> None:
        """Raise unless the logits are float, ``(*shape, K_local)``, of all classes together."""
        number, forbidden, dim, _ = self.classes
        check_float("local_logits", self.given)
        size, num_logits = self._sharding.size, self._sharding.num_logits
        if self.given.shape[:-1] != shape:
            expected = (*shape, size) if dim == -1 else (*shape[:1], size, *shape[1:])
            got = tuple(self.given.movedim(-1, dim).shape)
            raise ValueError(f"local_logits must have shape {expected}, got {got}")
        check_count("num_classes", num_logits)
        if num_logits != number and not num_logits == forbidden == number - 1:
            raise ValueError(f"num_classes of Sharded logits must be {number}, got {num_logits}")
        ranks = dist.get_world_size(self._sharding.group)
        if size * ranks < num_logits:
            raise ValueError(
                f"local_logits must have {num_logits} classes on all ranks, got {size} on each "
                f"of {ranks}"
            )

    def check_chain(self, transition: Transition) -> None:
        """Raise unless the chain is of rank one."""
        if transition.structure != RANK_ONE.name:
            raise ValueError(
                f"sharded logits need a rank-one chain, got {transition.family}: gather them"
            )

    def whole(self) -> ShardedPrediction:
        """Return it, if there are logits of all classes."""
        if self._sharding.num_logits < self.num_classes:
            raise ValueError(
                f"sharded logits must be of all {self.num_classes} classes for p_posterior and "
                f"p_sample, got {self._sharding.num_logits}: the mask has its place, too"
            )
        return self

    def step_record(
        self, transition: Transition, x_t: Tensor, t: Tensor, s: Tensor | None
    ) -> ShardedStep[Any]:
        """Return the steps that its law is of, with how the classes are shared out."""
        return ShardedStep(super().step_record(transition, x_t, t, s), self._sharding)

    def result(self, log_p: Tensor) -> Tensor:
        """Return log-probabilities with -inf in the columns that are no class's."""
        lacking = self.given.shape[-1] - log_p.shape[-1]
        return pad(log_p, (0, lacking), value=-torch.inf) if lacking else log_p

    def row(self, token: tuple[int, ...]) -> Tensor:
        """Return the logits of a token, of all classes."""
        here = self.given[token][..., : self._sharding.num_here]
        return self.classes.filled(reference.whole_logits(here, self._sharding))

    def served_by(
        self, _implementation: str, _reads_classes_first: bool = False
    ) -> ShardedPrediction:
        """Return the logits of classes, contiguous."""
        if derivatives.are_asked(self.given):
            raise ValueError(
                "sharded logits have gradients only, no forward mode and no transforms of "
                "torch.func: gather them"
            )
        num_here = self._sharding.num_here
        logits = self.given if self.given.shape[-1] == num_here else self.given[..., :num_here]
        return self._of(logits.contiguous())

    def predicted(
        self, _kernel: Any, known: Tensor, random: TokenRandom, samples: bool
    ) -> tuple[Tensor, Tensor]:
        """Return what the classes of all ranks say of tokens, by plain PyTorch."""
        excluded = self.classes.forbidden
        return reference.sharded_predict(
            self.given, known, random, samples, excluded, self._sharding
        )

    def loss_record(self, inputs: Inputs, others: tuple[Any, ...]) -> ShardedLoss[Any]:
        """Return what a loss is of, from the logits and what comes after them."""
        (logits,) = inputs
        return ShardedLoss(Loss(logits, *others), self._sharding, self._redraws)

    def loss(self, of_logits: LossOperation) -> LossOperation:
        """Return the loss, whose gradient has no derivative."""
        return of_logits._replace(reference=_no_derivative)

    def _of(self, given: Tensor) -> ShardedPrediction:
        return ShardedPrediction(given, self.classes, self._sharding, self._redraws)


def sharded_prediction(given: Sharded, classes: Classes, redraws: bool) -> ShardedPrediction:
    """Return a prediction by shards of a chain that redraws tokens or not, unchecked."""
    local, group, num_classes = given
    size = local.shape[-1] if isinstance(local, Tensor) and local.ndim > 0 else 0
    if num_classes is None:
        num_classes = size * dist.get_world_size(group)
    return ShardedPrediction(local, classes, Sharding(group, size, num_classes), redraws)


def is_distributed(given: Tensor) -> bool:
    """Return whether a tensor is a DTensor; to ask costs no import."""
    return type(given) is not Tensor and hasattr(given, "device_mesh")


def distributed_prediction(given: Any, classes: Classes, redraws: bool) -> Prediction:
    """Return a prediction by this rank's part of a DTensor, unchecked but for its placements."""
    mesh, axes = given.device_mesh, []
    for axis, placement in enumerate(given.placements):
        name = (mesh.mesh_dim_names or range(mesh.ndim))[axis]
        if placement.is_shard(given.ndim - 1):
            axes.append(axis)
        elif not (placement.is_replicate() or placement.is_shard(0)):
            raise ValueError(
                "logits as a DTensor must be sharded over classes or items, or replicated, got "
                f"{placement} on mesh dimension {name!r}: redistribute them"
            )
    if len(axes) > 1:
        raise ValueError(
            "logits as a DTensor must be sharded over classes on one mesh dimension, got "
            f"{given.placements}: redistribute them"
        )
    local = given.to_local()
    if not axes:
        return LogitsPrediction(local, classes)
    (axis,) = axes
    num_logits = given.shape[-1]
    size = -(-num_logits // mesh.size(axis))  # as DTensor cuts them
    sharding = Sharding(mesh.get_group(axis), size, num_logits)
    return ShardedPrediction(local, classes, sharding, redraws)


def _no_derivative(_items: Items) -> Callable[..., Tensor]:
    raise ValueError("the gradient of sharded logits has no derivative: gather them")
