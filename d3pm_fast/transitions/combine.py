"""Chains made of other chains: mixtures, and a mask added to any."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from .._checks import ArrayLike, check_law, check_probabilities
from .base import Transition
from .dense import DenseTransition
from .limits import stationary_law

__all__ = ["mixture", "with_mask"]


def mixture(
    transitions: Sequence[Transition], weights: ArrayLike, *, memory_budget: int = 1 << 30
) -> DenseTransition:
    """Return ``Q_t = sum_n weights_n Q_t^(n)``: each step is one of the chains' at random.

    Its limit is the law that ``Q_T`` keeps. It has a mask where all chains that have one share
    it.

    Args:
        transitions: chains of the same K and T, of any family.
        weights: one for each chain, not negative, summing to 1 within 1e-6.
        memory_budget: bytes that products of the chain may take.

    Raises:
        ValueError: no chains, chains of unequal K or T, weights that are no law, or a ``Q_T``
            that keeps several laws.
    """
    if not transitions:
        raise ValueError("transitions must hold at least one chain")
    first = transitions[0]
    for name in ("num_classes", "num_steps"):
        sizes = [getattr(chain, name) for chain in transitions]
        if len(set(sizes)) > 1:
            raise ValueError(f"transitions must have the same {name}, got {sizes}")
    law = check_law("weights", weights, len(transitions))
    masks = {chain.mask_id for chain in transitions if chain.mask_id >= 0}
    step = partial(_mixture_step, tuple(transitions), law.tolist())
    return DenseTransition(
        "mixture",
        first.num_classes,
        first.num_steps,
        step,
        stationary_law(step(first.num_steps)),
        mask_id=masks.pop() if len(masks) == 1 else -1,
        memory_budget=memory_budget,
    )


def with_mask(
    transition: Transition, betas: ArrayLike, *, memory_budget: int = 1 << 30
) -> DenseTransition:
    """Return a chain of K + 1 classes, the last of them an absorbing mask.

    In step t a token is masked with probability ``beta_t``, and otherwise moves as ``transition``
    does: ``Q_t = (1 - beta_t) [Q_t 0; 0 1] + beta_t 1 e_mask^T``. Its limit is the mask.

    Source: D3PM, appendix A.2.6.

    Args:
        transition: the chain of K classes.
        betas: ``(T,)``, as many as the chain has steps.
        memory_budget: bytes that products of the chain may take.

    Raises:
        ValueError: betas outside [0, 1], or of another length.
    """
    betas = check_probabilities("betas", betas)
    if len(betas) != transition.num_steps:
        raise ValueError(
            f"betas must have one entry a step, {transition.num_steps}, got {len(betas)}"
        )
    mask_id = transition.num_classes
    limit = torch.zeros(mask_id + 1, dtype=torch.float64)
    limit[mask_id] = 1.0
    return DenseTransition(
        "with_mask",
        mask_id + 1,
        len(betas),
        partial(_masked_step, transition, betas),
        limit,
        mask_id=mask_id,
        memory_budget=memory_budget,
    )


def _mixture_step(transitions: tuple[Transition, ...], weights: list[float], t: int) -> Tensor:
    matrix = torch.zeros(2 * (transitions[0].num_classes,), dtype=torch.float64)
    for chain, weight in zip(transitions, weights, strict=True):
        matrix.add_(chain.q_matrix(t).cpu(), alpha=weight)
    return matrix


def _masked_step(transition: Transition, betas: Tensor, t: int) -> Tensor:
    beta, mask_id = betas[t - 1], transition.num_classes
    matrix = torch.zeros(mask_id + 1, mask_id + 1, dtype=torch.float64)
    matrix[:mask_id, :mask_id] = (1 - beta) * transition.q_matrix(t).cpu()
    matrix[:mask_id, mask_id] = beta
    matrix[mask_id, mask_id] = 1.0
    return matrix
