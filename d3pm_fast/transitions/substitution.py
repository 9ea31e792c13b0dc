"""Chains that replace a class by a similar one, by a matrix of scores."""

import math

import torch

from .._arrays import ArrayLike, check_law, check_probabilities, check_square
from ..chains import MEMORY_BUDGET, DenseTransition
from ..chains.keep_or_move import keep_or_move_chain

__all__ = ["substitution"]


def substitution(
    scores: ArrayLike,
    betas: ArrayLike,
    *,
    scale: float = math.log(2) / 2,
    background: ArrayLike | None = None,
    memory_budget: int = MEMORY_BUDGET,
) -> DenseTransition:
    """Return ``Q_t = (1 - beta_t) I + beta_t P``, ``P[i, j] ~ background_j exp(scale scores_ij)``.

    Scores of proteins are log odds, ``2 log2(q_ij / (p_i p_j))`` in half bits: with the default
    scale and ``background = p``, P is the conditional probability ``q_ij / p_i``, up to the
    scores' rounding. For symmetric scores its limit is ``background_i sum_j background_j
    exp(scale scores_ij)``, normalized.

    Args:
        scores: ``(K, K)``, finite: :data:`~d3pm_fast.transitions.BLOSUM62`, say.
        betas: ``(T,)``, see :mod:`d3pm_fast.schedules`.
        scale: finite, at least 0; ``log(2) / 2`` reads half bits.
        background: ``(K,)``, every entry above 0, summing to 1 within 1e-6; by default uniform.
        memory_budget: bytes that products of the chain may take.

    Raises:
        ValueError: scores that are not a finite square, betas outside [0, 1], a negative scale,
            or a background that is no law or has zeros.
    """
    matrix = check_square("scores", scores)
    betas = check_probabilities("betas", betas)
    if not 0 <= scale < math.inf:
        raise ValueError(f"scale must be finite and at least 0, got {scale}")
    weights = scale * matrix
    if background is not None:
        law = check_law("background", background, len(matrix))
        if not bool((law > 0).all()):
            raise ValueError(f"background must be above 0, class {int(law.argmin())} is not")
        weights += law.log()
    move = torch.softmax(weights, dim=1)
    return keep_or_move_chain("substitution", move, betas, memory_budget)
