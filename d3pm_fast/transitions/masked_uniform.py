"""The uniform chain of visible classes, and a mask that stays."""

import torch

from .._arrays import ArrayLike
from .._checks import check_class, check_count
from ..chains import RankOneChain, Schedule, VisibleAndMask, rank_one_chain

__all__ = ["masked_uniform"]


def masked_uniform(
    num_classes: int, betas: ArrayLike | Schedule, mask_betas: ArrayLike | Schedule, mask_id: int
) -> RankOneChain:
    """Return the chain in which visible tokens are redrawn among themselves, and the mask stays.

    In step t a visible token is masked with probability ``c = mask_beta_t``. Otherwise it is kept
    with probability ``1 - beta_t``, else redrawn from the K - 1 visible classes:

        Q_t[i, i] = (1 - c) (1 - beta_t + beta_t / (K - 1)),  Q_t[i, j] = (1 - c) beta_t / (K - 1),
        Q_t[i, mask] = c,  Q_t[mask, mask] = 1.

    It is ``with_mask`` of the uniform chain, at the cost of a rank-one chain. In
    ``mask_and_uniform``, by contrast, a mask may be redrawn too. Data never hold the mask: its
    logit counts as -inf, and where it is the last class, a denoiser may leave it out. The
    stationary distribution has as many masks as x_T, and is uniform on the visible classes.

    Source: Gu et al. 2022 (VQ-Diffusion), eq. 7 and 8.

    Args:
        num_classes: K, at least 3, the mask counted in.
        betas: of the uniform part, ``(T,)``, see :mod:`d3pm_fast.schedules`; or a schedule of
            :mod:`d3pm_fast.schedules.continuous`, whose alpha is the share of the visible tokens
            that is kept.
        mask_betas: of the mask, as betas; the alpha of a schedule is the share of all tokens that
            is still visible.
        mask_id: the mask's class, in [0, K).

    Raises:
        ValueError: fewer than 3 classes, betas outside [0, 1], or of unequal length.
        TypeError: betas of one kind beside a schedule of the other.
        IndexError: ``mask_id`` is not a class.
    """
    num_classes = check_count("num_classes", num_classes, least=3)
    mask_id = check_class("mask_id", mask_id, num_classes)
    if isinstance(betas, Schedule) != isinstance(mask_betas, Schedule):
        raise TypeError("betas and mask_betas must both be numbers, or both be schedules")
    pi = torch.full((num_classes,), 1 / (num_classes - 1), dtype=torch.float64, device="cpu")
    pi[mask_id] = 0
    visible = rank_one_chain("uniform", num_classes, betas, pi, 1.0)
    masking = rank_one_chain("absorbing", num_classes, mask_betas, None, 0.0, mask_id)
    if visible.num_steps != masking.num_steps:
        raise ValueError(
            f"mask_betas must have one entry a step, {visible.num_steps}, got {masking.num_steps}"
        )
    return VisibleAndMask("masked_uniform", visible, masking)
