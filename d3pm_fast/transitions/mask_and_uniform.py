"""The chain of BERT's corruption: a token that changes is masked, or redrawn from all classes."""

from torch import Tensor

from .._arrays import ArrayLike, check_probabilities
from .._checks import check_class, check_count, check_probability
from ..chains import RankOneChain, Schedule, rank_one_chain

__all__ = ["mask_and_uniform"]


def mask_and_uniform(
    num_classes: int,
    betas: ArrayLike | Schedule,
    mask_id: int,
    uniform_share: float | ArrayLike = 0.1,
    data_has_mask: bool = False,
) -> RankOneChain:
    """Return ``Q_t = (1 - beta_t) I + beta_t 1 (g_t 1/K + (1 - g_t) e_mask)^T``.

    Source: D3PM, appendix A.2.6; one step of it is BERT's corruption. A masked token may be
    redrawn like any other.

    Args:
        num_classes: K, at least 2, the mask counted in.
        betas: ``(T,)``, see :mod:`d3pm_fast.schedules`; or a schedule of
            :mod:`d3pm_fast.schedules.continuous`.
        mask_id: the mask's class, in [0, K).
        uniform_share: g, in [0, 1]: one number, or ``(T,)`` for one of each of T steps.
        data_has_mask: whether x_0 may be the mask, as where it is a grey level of the paper's
            images. Where not, a denoiser's logit of the mask counts as -inf and has the gradient 0,
            whatever it is; and where the mask is the last class, a denoiser may leave it out.

    Raises:
        ValueError: fewer than 2 classes, betas or shares outside [0, 1], or of unequal length.
        IndexError: ``mask_id`` is not a class.
    """
    num_classes = check_count("num_classes", num_classes, least=2)
    mask_id = check_class("mask_id", mask_id, num_classes)
    share: float | Tensor
    if isinstance(uniform_share, (int, float)):
        share = float(check_probability("uniform_share", uniform_share))
    else:
        share = check_probabilities("uniform_share", uniform_share)
        if isinstance(betas, Schedule):
            raise ValueError("uniform_share must be one number in continuous time")
        if len(share) != len(betas):
            raise ValueError(
                f"uniform_share must have one entry a step, {len(betas)}, got {len(share)}"
            )
    mask = mask_id, data_has_mask
    return rank_one_chain("mask_and_uniform", num_classes, betas, None, share, *mask)
