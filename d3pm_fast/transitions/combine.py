"""Chains made of other chains: mixtures, and a mask added to any."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from .._checks import ArrayLike, check_law, check_probabilities
from .._loadable import loadable
from .base import Transition
from .dense import DenseTransition
from .limits import stationary_law
from .products import MEMORY_BUDGET, Products

__all__ = ["mixture", "with_mask"]


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
        ValueError: no chains, chains of unequal K or T, weights that are no law, or a ``Q_T``
            that keeps several laws.
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


def with_mask(
    transition: Transition, betas: ArrayLike, *, memory_budget: int = MEMORY_BUDGET
) -> DenseTransition:
    """Return a chain of K + 1 classes, the last of them an absorbing mask.

    In step t a token is masked with probability ``beta_t``, and otherwise moves as ``transition``
    does: ``Q_t = (1 - beta_t) [Q_t 0; 0 1] + beta_t 1 e_mask^T``. Its limit is the mask; the
    bound's prior term is infinite unless the last beta is 1.

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
    limit = torch.zeros(mask_id + 1, dtype=torch.float64, device="cpu")
    limit[mask_id] = 1.0
    step, log_step = (partial(make, transition, betas) for make in (_masked_step, _log_masked_step))
    matrices = Products(step, mask_id + 1, len(betas), memory_budget, log_step)
    return DenseTransition("with_mask", matrices, limit, mask_id)


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


@loadable
def _masked_step(transition: Transition, betas: Tensor, t: int) -> Tensor:
    beta = betas[t - 1]
    return _with_mask((1 - beta) * transition.q_matrix(t).cpu(), beta, 0.0, 1.0)


@loadable
def _log_masked_step(transition: Transition, betas: Tensor, t: int) -> Tensor:
    beta = betas[t - 1]
    moved = torch.log1p(-beta) + transition.log_q_matrix(t).cpu()
    return _with_mask(moved, beta.log(), -torch.inf, 0.0)


def _with_mask(moves: Tensor, masking: Tensor, never: float, always: float) -> Tensor:
    mask_id = len(moves)
    matrix = torch.full((mask_id + 1, mask_id + 1), never, dtype=torch.float64, device="cpu")
    matrix[:mask_id, :mask_id] = moves
    matrix[:mask_id, mask_id] = masking
    matrix[mask_id, mask_id] = always
    return matrix
