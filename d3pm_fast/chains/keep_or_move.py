"""Chains that keep a token, or move it as one matrix says."""

from functools import partial

from torch import Tensor

from .._loadable import loadable
from .dense import DenseTransition
from .limits import stationary_law
from .products import Products

__all__ = ["keep_or_move_chain"]


def keep_or_move_chain(
    family: str, move: Tensor, betas: Tensor, memory_budget: int
) -> DenseTransition:
    """Return the chain of ``Q_t = (1 - beta_t) I + beta_t move``."""
    step = partial(_keep_or_move, move, betas)
    matrices = Products(step, len(move), len(betas), memory_budget)
    return DenseTransition(family, matrices, stationary_law(move))


@loadable
def _keep_or_move(move: Tensor, betas: Tensor, t: int) -> Tensor:
    """Return ``(1 - beta_t) I + beta_t move``, float64 ``(K, K)``."""
    beta = betas[t - 1]
    matrix = beta * move
    matrix.diagonal().add_(1 - beta)
    return matrix
