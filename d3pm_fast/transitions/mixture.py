"""Mixtures of chains."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from .._arrays import ArrayLike, check_law
from .._loadable import loadable
from ..chains import MEMORY_BUDGET, DenseTransition, Products, Transition, stationary_law

__all__ = ["mixture"]


def mixture(
    transitions: Sequence[Transition], weights: ArrayLike, *, memory_budget: int = MEMORY_BUDGET
) -> DenseTransition:
    """Return ``Q_t = sum_n weights_n Q_t^(n)``: each step is one of the chains' at random.

    Its limit is the law that ``Q_T`` keeps. It has a mask where all chains that have one share
    it.

    Args:
        transitions: chains of the same K and T, of any family.
        weights: one for each chain, not negative, summing to 1 within 1e-6.
        memory_budget: bytes that products of the chain may take.

    Raises:
        ValueError: no chains, chains of unequal K or T, or in continuous time, weights that are
            no law, or a ``Q_T`` that keeps several laws.
    """
    if isinstance(transitions, Transition) or not transitions:
        raise ValueError("transitions must be a sequence of at least one chain")
    for chain in transitions:
        if not isinstance(chain, Transition):
            raise TypeError(f"transitions must hold chains, got {type(chain).__name__}")
    first = transitions[0]
    for name in ("num_classes", "num_steps"):
        sizes = [getattr(chain, name) for chain in transitions]
        if len(set(sizes)) > 1:
            raise ValueError(f"transitions must have the same {name}, got {sizes}")
    if not first.has_steps:
        raise ValueError("transitions must be chains of T steps, got chains in continuous time")
    law = check_law("weights", weights, len(transitions))
    masks = {chain.mask_id for chain in transitions if chain.mask_id >= 0}
    steps = (partial(make, tuple(transitions), law) for make in (_mixture_step, _log_mixture_step))
    step, log_step = steps
    size = first.num_classes, first.num_steps, memory_budget
    return DenseTransition(
        "mixture",
        Products(step, *size, log_step),
        stationary_law(step(first.num_steps)),
        masks.pop() if len(masks) == 1 else -1,
    )


@loadable
def _mixture_step(transitions: tuple[Transition, ...], weights: Tensor, t: int) -> Tensor:
    parts = [chain.q_matrix(t).cpu() * w for chain, w in zip(transitions, weights, strict=True)]
    return torch.stack(parts).sum(0)


@loadable
def _log_mixture_step(transitions: tuple[Transition, ...], weights: Tensor, t: int) -> Tensor:
    parts = [
        chain.log_q_matrix(t).cpu() + w for chain, w in zip(transitions, weights.log(), strict=True)
    ]
    return torch.stack(parts).logsumexp(0)
