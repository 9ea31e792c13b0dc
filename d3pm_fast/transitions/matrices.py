"""Chains of given matrices."""

from functools import partial

from torch import Tensor

from .._checks import ArrayLike, as_float64, check_finite, check_law
from .dense import DenseTransition
from .limits import stationary_law

__all__ = ["from_matrices", "keep_or_move"]


def from_matrices(
    matrices: ArrayLike,
    *,
    stationary: ArrayLike | None = None,
    memory_budget: int = 1 << 30,
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
            a stationary vector that is no law, or none given where ``Q_T`` keeps several.
    """
    steps = as_float64(matrices)
    if steps.ndim != 3 or steps.shape[1] != steps.shape[2] or min(steps.shape) < 1:
        raise ValueError(
            f"matrices must have shape (T, K, K) with T >= 1, got {tuple(steps.shape)}"
        )
    if steps.shape[1] < 2:
        raise ValueError(f"matrices must have at least 2 classes, got {steps.shape[1]}")
    check_finite("matrices", steps)
    if bool((steps < 0).any()):
        t, i, j = (int(index) for index in (steps < 0).nonzero()[0])
        raise ValueError(
            f"matrices must not be negative, got {steps[t, i, j]:.6g} for ({i}, {j}) at t = {t + 1}"
        )
    sums = steps.sum(2)
    off = (sums - 1).abs() > 1e-6
    if bool(off.any()):
        t, i = (int(index) for index in off.nonzero()[0])
        raise ValueError(
            f"rows of matrices must sum to 1 within 1e-6, row {i} at t = {t + 1} sums to "
            f"{sums[t, i]:.9g}"
        )
    steps /= sums.unsqueeze(2)
    num_steps, num_classes, _ = steps.shape
    if stationary is None:
        law = stationary_law(steps[-1])
    else:
        law = check_law("stationary", stationary, num_classes)
    return DenseTransition(
        "from_matrices",
        num_classes,
        num_steps,
        partial(_given_step, steps),
        law,
        memory_budget=memory_budget,
    )


def keep_or_move(move: Tensor, betas: Tensor, t: int) -> Tensor:
    """Return ``(1 - beta_t) I + beta_t move``, float64 ``(K, K)``."""
    beta = betas[t - 1]
    matrix = beta * move
    matrix.diagonal().add_(1 - beta)
    return matrix


def _given_step(steps: Tensor, t: int) -> Tensor:
    return steps[t - 1].clone()
