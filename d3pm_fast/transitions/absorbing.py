"""The absorbing chain: a token that changes is masked, and stays so."""

from .._arrays import ArrayLike
from .._checks import check_class, check_count
from ..chains import RankOneChain, Schedule, rank_one_chain

__all__ = ["absorbing"]


def absorbing(
    num_classes: int, betas: ArrayLike | Schedule, mask_id: int, data_has_mask: bool = False
) -> RankOneChain:
    """Return ``Q_t = (1 - beta_t) I + beta_t 1 e_mask^T`` (D3PM, appendix A.2.2).

    Args:
        num_classes: K, at least 2, the mask counted in.
        betas: ``(T,)``, see :mod:`d3pm_fast.schedules`, of which
            :func:`~d3pm_fast.schedules.jsd` is the paper's; or a schedule of
            :mod:`d3pm_fast.schedules.continuous`.
        mask_id: the mask's class, in [0, K).
        data_has_mask: whether x_0 may be the mask, as where it is a grey level of the paper's
            images. Where not, a denoiser's logit of the mask counts as -inf and has the gradient 0,
            whatever it is; and where the mask is the last class, a denoiser may leave it out.

    Raises:
        ValueError: fewer than 2 classes, or betas outside [0, 1].
        IndexError: ``mask_id`` is not a class.
    """
    num_classes = check_count("num_classes", num_classes, least=2)
    mask_id = check_class("mask_id", mask_id, num_classes)
    return rank_one_chain("absorbing", num_classes, betas, None, 0.0, mask_id, data_has_mask)
