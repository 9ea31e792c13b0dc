"""The chain of matrices of your own."""

from functools import partial

from torch import Tensor

from .._arrays import ArrayLike, as_float64, check_law, check_stochastic
from .._loadable import loadable
from ..chains import MEMORY_BUDGET, DenseTransition, Products, stationary_law

__all__ = ["from_matrices"]


def from_matrices(
    matrices: ArrayLike,
    *,
    stationary: ArrayLike | None = None,
    memory_budget: int = MEMORY_BUDGET,
) -> DenseTransition:
    """Return the chain of your own ``Q_1 .. Q_T``.

    Args:
        matrices: ``(T, K, K)``, ``[t - 1, i, j]`` the probability of a step t from i to j: finite,
            not negative, every row summing to 1 within 1e-6 (and divided by its float64 sum).
            A float64 copy is kept.
        stationary: ``(K,)``, what x_T tends to; by default the law that ``Q_T`` keeps.
        memory_budget: bytes that products of the chain may take, the copy not counted.

    Raises:
        ValueError: wrong shape, entries that are no probabilities, a row that does not sum to 1,
            a stationary vector that is no law, none given where ``Q_T`` keeps several, or
            matrices that require a gradient.
    """
    if isinstance(matrices, Tensor) and matrices.requires_grad:
        raise ValueError(
            "matrices must not require a gradient, the chain's operations have none with respect "
            "to them: detach them, or learn them through cumulative_products"
        )
    steps = as_float64("matrices", matrices)
    if steps.ndim != 3 or steps.shape[1] != steps.shape[2] or min(steps.shape) < 1:
        raise ValueError(
            f"matrices must have shape (T, K, K) with T >= 1, got {tuple(steps.shape)}"
        )
    if steps.shape[1] < 2:
        raise ValueError(f"matrices must have at least 2 classes, got {steps.shape[1]}")
    steps = check_stochastic("matrices", steps)
    num_steps, num_classes, _ = steps.shape
    if stationary is None:
        law = stationary_law(steps[-1])
    else:
        law = check_law("stationary", stationary, num_classes)
    products = Products(partial(_given_step, steps), num_classes, num_steps, memory_budget)
    return DenseTransition("from_matrices", products, law)


@loadable
def _given_step(steps: Tensor, t: int) -> Tensor:
    return steps[t - 1].clone()
