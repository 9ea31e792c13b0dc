"""The uniform chain: a token that changes is redrawn from all classes."""

from .._arrays import ArrayLike
from .._checks import check_count
from ..chains import RankOneChain, Schedule, rank_one_chain

__all__ = ["uniform"]


def uniform(num_classes: int, betas: ArrayLike | Schedule) -> RankOneChain:
    """Return ``Q_t = (1 - beta_t) I + beta_t 1 1^T / K`` (D3PM, appendix A.2.1).

    Args:
        num_classes: K, at least 2.
        betas: ``(T,)``, see :mod:`d3pm_fast.schedules`; or a schedule of
            :mod:`d3pm_fast.schedules.continuous`.

    Raises:
        ValueError: fewer than 2 classes, or betas outside [0, 1].
    """
    num_classes = check_count("num_classes", num_classes, least=2)
    return rank_one_chain("uniform", num_classes, betas, pi=None, base_share=1.0)
