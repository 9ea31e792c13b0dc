"""The chain of a rate matrix of your own."""

from .._arrays import ArrayLike
from ..chains import MEMORY_BUDGET, DenseTransition, Schedule
from ..chains.exponentials import check_rate, rate_chain

__all__ = ["from_rate"]


def from_rate(
    rate: ArrayLike,
    times: ArrayLike | Schedule,
    *,
    stationary: ArrayLike | None = None,
    memory_budget: int = MEMORY_BUDGET,
) -> DenseTransition:
    """Return ``Q_t = exp((tau_t - tau_{t-1}) R)``, so that ``Qbar_t = exp(tau_t R)``.

    With a schedule in place of times the chain is in continuous time, of rates
    ``-alpha'(t) / alpha(t) R``: ``Q_{s->t} = exp(log(alpha(s) / alpha(t)) R)``. R is not rescaled.
    For ``R = 1 pi^T - I`` it is the chain of :func:`marginal` with that schedule, and n R has the
    schedule ``alpha^n``; of a chain of T steps the times are ``-log alpha(t / T)``. A matrix
    exponential is made for every time that occurs, and kept as the budget allows.

    Source: D3PM, appendix A.4.2, whose ``alpha_t`` are the differences of these times; in
    continuous time Campbell et al. 2022, section 4.

    Args:
        rate: R, ``(K, K)``: not negative off the diagonal, rows summing to 0 within 1e-6 of the
            largest rate (the diagonal is then set anew in float64).
        times: ``tau_1 .. tau_T``, at least 0, never falling; ``tau_0 = 0`` is implied. See
            :func:`d3pm_fast.schedules.mutual_information_times`. Or a schedule of
            :mod:`d3pm_fast.schedules.continuous`.
        stationary: ``(K,)``, what x_T tends to; by default the law that R keeps.
        memory_budget: bytes that products of the chain may take.

    Raises:
        ValueError: not a rate matrix, times that fall or are not finite, a stationary vector
            that is no law, or none given where the limit depends on x_0; such a limit with a
            schedule that ends at 0.
    """
    return rate_chain("from_rate", check_rate(rate), times, stationary, -1, memory_budget)
