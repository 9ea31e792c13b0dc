"""The marginal chain: a token that changes is redrawn from a distribution of your own."""

from .._arrays import ArrayLike, check_law
from .._checks import check_count
from ..chains import RankOneChain, Schedule, rank_one_chain

__all__ = ["marginal"]


def marginal(num_classes: int, betas: ArrayLike | Schedule, pi: ArrayLike) -> RankOneChain:
    """Return ``Q_t = (1 - beta_t) I + beta_t 1 pi^T``: any stationary vector, data marginals say.

    Source: Vignac et al. 2023 (DiGress), section 4.1.

    Args:
        num_classes: K, at least 2.
        betas: ``(T,)``, see :mod:`d3pm_fast.schedules`; or a schedule of
            :mod:`d3pm_fast.schedules.continuous`.
        pi: ``(K,)``, not negative, summing to 1 within 1e-6 (and divided by its float64 sum);
            zeros are legal: the chain never enters such a class.

    Raises:
        ValueError: wrong shape, a negative or infinite entry, or a sum that is not 1.
    """
    num_classes = check_count("num_classes", num_classes, least=2)
    pi = check_law("pi", pi, num_classes)
    return rank_one_chain("marginal", num_classes, betas, pi, base_share=1.0)
