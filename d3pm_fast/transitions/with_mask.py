"""A mask added to any chain."""

from functools import partial

import torch
from torch import Tensor

from .._arrays import ArrayLike, check_probabilities
from .._loadable import loadable
from ..chains import MEMORY_BUDGET, DenseTransition, Products, Transition

__all__ = ["with_mask"]


def with_mask(
    transition: Transition,
    betas: ArrayLike,
    *,
    memory_budget: int = MEMORY_BUDGET,
    data_has_mask: bool = False,
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
        data_has_mask: whether x_0 may be the mask. Where not, a denoiser's logit of the mask counts
            as -inf and has the gradient 0, whatever it is, and a denoiser may leave it out. Logits
            are copied for that, which is little beside the products of a dense chain.

    Raises:
        ValueError: betas outside [0, 1], or of another length; a chain in continuous time.
    """
    if not transition.has_steps:
        raise ValueError("transition must be a chain of T steps, got one in continuous time")
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
    return DenseTransition("with_mask", matrices, limit, mask_id, data_has_mask)


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
