"""Noise schedules by what x_t still tells about x_0 (D3PM, appendix A.7)."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .._arrays import ArrayLike, check_law, check_square, check_stochastic
from .._checks import check_count
from .._information import divergence_terms
from ..chains.exponentials import check_rate, exponential
from ..chains.limits import closure, stationary_law

__all__ = ["mutual_information", "mutual_information_times"]


def mutual_information(
    matrix_of_beta: Callable[[float], Tensor], num_steps: int, p0: ArrayLike | None = None
) -> Tensor:
    """Return betas after which each step loses the same share of the information on x_0.

    One after the other they make ``I(x_t; x_0) / H(x_0) = 1 - t/T``. Where even a beta of 1
    leaves more than that, it is 1; a family that never forgets all in one step ends so.

    Source: D3PM, appendix A.7, eq. 17. For an absorbing chain and data without the mask it is
    :func:`~d3pm_fast.schedules.jsd`.

    Args:
        matrix_of_beta: the family: a beta in [0, 1] to ``Q``, float64 ``(K, K)``, the identity
            at 0; ``lambda beta: transitions.uniform(27, [beta]).q_matrix(1)``, say.
        num_steps: T, at least 1. Each step takes some ten products of K x K matrices.
        p0: ``(K,)``, the law of x_0, zeros allowed; by default uniform.

    Returns:
        float64 ``(T,)``.

    Raises:
        ValueError: T below 1, or a p0 that is no law or holds a single class, or a
            matrix of the family whose rows are no laws.
    """
    num_steps = check_count("num_steps", num_steps)

    def step(beta: float) -> Tensor:
        matrix = check_square(f"matrix_of_beta({beta:g})", matrix_of_beta(beta))
        return check_stochastic(f"matrix_of_beta({beta:g})", matrix[None])[0]

    product = step(0.0)
    law = _data_law(p0, len(product))

    def excess(before: Tensor, target: float, beta: float) -> float:
        return _share(law, before @ step(beta)) - target

    betas = []
    for t in range(1, num_steps + 1):
        left = partial(excess, product, (num_steps - t) / num_steps)
        betas.append(1.0 if left(1.0) >= 0 else _root(left, 0.0, 1.0))
        product = product @ step(betas[-1])
    return torch.tensor(betas, dtype=torch.float64, device="cpu")


def mutual_information_times(
    rate: ArrayLike, num_steps: int, p0: ArrayLike | None = None, remainder: float = 1e-5
) -> Tensor:
    """Return times ``tau_t`` at which ``exp(tau_t R)`` has lost t/T of the information on x_0.

    ``I(x_t; x_0) / H(x_0) = 1 - t/T`` for t < T; at T, where that would take for ever,
    ``remainder`` is left. Source: D3PM, appendix A.7, which interpolates on a grid what is solved
    here. For an absorbing chain and data without the mask, ``tau_t = -log(1 - t/T)``.

    Args:
        rate: R, ``(K, K)``, see :func:`d3pm_fast.transitions.from_rate`, which takes the result.
        num_steps: T, at least 1. Each step takes some ten matrix exponentials.
        p0: ``(K,)``, the law of x_0, zeros allowed; by default uniform.
        remainder: what is left at T, as a share of ``H(x_0)``, above 0 and below 1/T.

    Returns:
        float64 ``(T,)``, rising.

    Raises:
        ValueError: T below 1, not a rate matrix, a p0 that is no law or holds a single class, a
            remainder outside (0, 1/T), or a chain whose limit depends on x_0.
    """
    num_steps = check_count("num_steps", num_steps)
    matrix = check_rate(rate)
    law = _data_law(p0, len(matrix))
    if not 0 < remainder < 1 / num_steps:
        raise ValueError(f"remainder must lie in (0, 1/T), got {remainder}")
    reach = closure(matrix)[1]

    def excess(target: float, time: float) -> float:
        return _share(law, exponential(matrix, reach, time)) - target

    stationary_law(matrix)  # raises where some of the information stays for ever
    scale = 1 / float(matrix.abs().max())
    times, before = [], 0.0
    for t in range(1, num_steps + 1):
        left = partial(excess, (num_steps - t) / num_steps if t < num_steps else remainder)
        after = max(2 * before, scale)
        while left(after) > 0:
            after *= 2
        before = _root(left, before, after)
        times.append(before)
    return torch.tensor(times, dtype=torch.float64, device="cpu")


def _data_law(p0: ArrayLike | None, num_classes: int) -> Tensor:
    if p0 is None:
        return torch.full((num_classes,), 1 / num_classes, dtype=torch.float64, device="cpu")
    law = check_law("p0", p0, num_classes)
    if int((law > 0).sum()) == 1:
        raise ValueError("p0 must hold at least two classes: one has no information to lose")
    return law


def _share(law: Tensor, matrix: Tensor) -> float:
    """Return ``I(x_t; x_0) / H(x_0)`` for ``matrix = Qbar_t``.

    ``I`` is the mean of ``KL(Qbar_t[x_0, :] || p Qbar_t)`` over ``x_0 ~ p``.
    """
    some = law > 0
    rows, p = matrix[some], law[some]
    m = p @ rows
    seen = m > 0
    information = p @ divergence_terms(rows[:, seen], m[seen]).sum(dim=1)
    return float(information / -(p * p.log()).sum())


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    """Return where ``function`` changes its sign between two points of opposite signs.

    Inverse quadratic interpolation where it is safe, halving elsewhere: Chandrupatla 1997.
    """
    a, b = high, low
    f_a, f_b = function(a), function(b)
    share = 0.5
    while True:
        x = a + share * (b - a)
        f_x = function(x)
        if (f_x > 0) == (f_a > 0):
            c, f_c = a, f_a
        else:
            c, f_c, b, f_b = b, f_b, a, f_a
        a, f_a = x, f_x
        best, f_best = (a, f_a) if abs(f_a) < abs(f_b) else (b, f_b)
        least = 4e-16 * abs(best) / abs(b - a) if b != a else 1.0
        if f_best == 0 or least > 0.5:
            return best
        place, value = (a - b) / (c - b), (f_a - f_b) / (f_c - f_b)
        share = 0.5
        if value**2 < place and (1 - value) ** 2 < 1 - place:
            share = f_a / (f_b - f_a) * f_c / (f_b - f_c)
            share += (c - a) / (b - a) * f_a / (f_c - f_a) * f_b / (f_c - f_b)
        share = min(1 - least, max(least, share))
