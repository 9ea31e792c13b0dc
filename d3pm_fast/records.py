"""What a call is made of beside its tensors of tokens, under one name from Python to the kernels.

A registered operation takes the fields one by one; whoever calls it and whoever serves it has them
together. Those of a chain's step are in ``chains/structures.py``.
"""

from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor


class OfClasses(Protocol):
    """What is of so many classes."""

    @property
    def num_classes(self) -> int:
        """K."""

    @property
    def of_tokens(self) -> tuple[str, ...]:
        """Which fields are of tokens, ``(B,)`` or ``(B, *S)``."""


AnyStep = TypeVar("AnyStep", bound=OfClasses)
"""The record of a step, of whatever structure."""
AnyMarginal = TypeVar("AnyMarginal")
"""The record of a marginal, of whatever structure."""


class Model(NamedTuple):
    """The reverse step.

    Attributes:
        posterior_mean: the posteriors of all x_0, each with its predicted weight; else eq. 4.
        direct: whether the softmax itself is ``p(x_s | x_t)`` of a step to s = 0.
    """

    posterior_mean: bool
    direct: bool


class Weights(NamedTuple):
    """Of a loss's two terms, the variational bound's and the cross-entropy.

    Attributes:
        vb: of the bound's.
        ce: of the cross-entropy.
        tokens: float64 or float32 ``(B, *S)``, as the loss: a factor of each token's; None for 1.
    """

    vb: float
    ce: float
    tokens: Tensor | None = None


class Random(NamedTuple):
    """What the random numbers of a call depend on, beside a token's position.

    Attributes:
        seeds: int64 ``(B,)``.
        step: a counter.
        position_offset: the position in its item of the first token that is given of each.
    """

    seeds: Tensor
    step: int
    position_offset: int = 0


class TokenRandom(NamedTuple):
    """What the random numbers of each token depend on, where tokens are any.

    Attributes:
        seeds: int64, of its item.
        positions: int64, in its item.
        step: a counter.
    """

    seeds: Tensor
    positions: Tensor
    step: int


class Shaping(NamedTuple):
    """How logits are shaped, see :class:`d3pm_fast.functional.Shaped`.

    Attributes:
        unconditional: of the shape and the dtype of the logits; None for no guidance.
        guidance: 1 for none.
        temperature: 1 for none.
        top_k: K for all classes.
        top_p: 1 for all classes.
        min_p: 0 for all classes.
        excluded: the class whose logits count as -inf from the first; -1 for none.
    """

    unconditional: Tensor | None
    guidance: float
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    excluded: int

    def without_cuts(self, num_classes: int) -> "Shaping":
        """Return the guidance alone."""
        return self._replace(temperature=1.0, top_k=num_classes, top_p=1.0, min_p=0.0)


def unshaped_of(num_classes: int, excluded: int) -> Shaping:
    """Return how logits are shaped that are taken as they are."""
    return Shaping(None, 1.0, 1.0, num_classes, 1.0, 0.0, excluded)


class Shard(NamedTuple):
    """Which of all classes a call has logits of: as many as those have, from ``first`` on."""

    first: int


class Sharding(NamedTuple):
    """How classes are shared out to the ranks of a process group, in their order.

    Attributes:
        group: of processes; None for the default one.
        size: how many classes a rank has; the last ranks may have fewer, or none.
        num_logits: how many classes have logits, on all ranks together.
    """

    group: Any
    size: int
    num_logits: int

    @property
    def num_here(self) -> int:
        """How many classes this rank has logits of."""
        return min(max(self.num_logits - self.shard.first, 0), self.size)

    @property
    def rank(self) -> int:
        """Of this process in the group."""
        return dist.get_rank(self.group)

    @property
    def shard(self) -> Shard:
        """The classes of this rank."""
        return Shard(self.rank * self.size)


class Loss(NamedTuple, Generic[AnyStep]):
    """What a loss is of.

    Attributes:
        logits: ``(B, *S, K)``.
        x0: int64 ``(B, *S)``.
        mask: bool ``(B, *S)``; None where every token counts.
        x_t: int64 ``(B, *S)``.
        step: of the chain, from each x_t.
        model: of the reverse step.
        weights: of the terms.
        is_density: whether the step has rates, and the bound's term is its density at t.
        with_terms: whether the result has one axis more, ``(3,)``: the loss, and its two terms
            with the factors of tokens, but without ``weights.vb`` and ``weights.ce``.
    """

    logits: Tensor
    x0: Tensor
    mask: Tensor | None
    x_t: Tensor
    step: AnyStep
    model: Model
    weights: Weights
    is_density: bool = False
    with_terms: bool = False

    @property
    def counts(self) -> Tensor | None:
        """Which tokens have a loss, bool ``(B, *S)``; None for all."""
        return counts_of(self.mask, self.weights)


class Head(NamedTuple):
    """What logits ``hidden weight^T + bias`` are made by, some of them at a time.

    Attributes:
        weight: ``(K, D)``, or without the last class where that is forbidden.
        bias: as many as the weight has rows; None for 0.
        num_logits: how many a row has, K.
        dtype: that the products are made in, and the logits are of.
        filled: the class that kernels do not leave out, whose logits are -inf; -1 for none.
        memory_budget: bytes of logits at a time.
        num_open: how many tokens may have a loss, at most; -1 where it is not known.
        schedule: ``"rows"`` or ``"tiles"``.
        pulls_hidden: whether a gradient of hidden is wanted.
        pulls_weight: whether gradients of weight and bias are wanted.
    """

    weight: Tensor
    bias: Tensor | None
    num_logits: int
    dtype: torch.dtype
    filled: int
    memory_budget: int
    num_open: int
    schedule: str
    pulls_hidden: bool
    pulls_weight: bool


class LinearLoss(NamedTuple, Generic[AnyStep]):
    """What a loss of logits that a head makes is of; all but the first two as :class:`Loss` has it.

    Attributes:
        hidden: ``(B, *S, D)``.
        head: of the logits.
    """

    hidden: Tensor
    head: Head
    x0: Tensor
    mask: Tensor | None
    x_t: Tensor
    step: AnyStep
    model: Model
    weights: Weights
    is_density: bool = False
    with_terms: bool = False

    def of(self, logits: Tensor) -> Loss[AnyStep]:
        """Return what the loss of the logits is of."""
        return Loss(logits, *self[2:])

    @property
    def counts(self) -> Tensor | None:
        """Which tokens have a loss, bool ``(B, *S)``; None for all."""
        return counts_of(self.mask, self.weights)


class ShardedStep(NamedTuple, Generic[AnyStep]):
    """The steps that a law is of, of which this rank has some classes.

    Attributes:
        step: of the chain.
        sharding: how the classes are shared out.
    """

    step: AnyStep
    sharding: Sharding


class ShardedLoss(NamedTuple, Generic[AnyStep]):
    """What a loss is of, of which this rank has a shard.

    Attributes:
        of: with the logits of the shard.
        sharding: how the classes are shared out.
        redraws: whether the chain has tokens go to other classes than the mask.
    """

    of: Loss[AnyStep]
    sharding: Sharding
    redraws: bool


class ShardedLinearLoss(NamedTuple, Generic[AnyStep]):
    """What a loss is of where the classes of a head are sharded.

    Attributes:
        of: the loss, by the weights of this rank.
        sharding: of the classes.
        redraws: whether the chain redraws tokens, so that sums are on the wire, too.
    """

    of: LinearLoss[AnyStep]
    sharding: Sharding
    redraws: bool


def counts_of(mask: Tensor | None, weights: Weights) -> Tensor | None:
    """Return which tokens have a loss, bool ``(B, *S)``; None for all."""
    if weights.tokens is None:
        return mask
    has_weight = weights.tokens != 0
    return has_weight if mask is None else mask & has_weight
