"""What the networks have in common: how the time comes in and how the logits go out."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def sinusoids(time: Tensor, features: int) -> Tensor:
    """Return the sines and cosines of times in [0, 1], ``(B,)``, as ``(B, features)``.

    The fastest ones advance by one radian in 1/1000, a step of T = 1000.
    """
    half = features // 2
    frequencies = torch.exp(torch.linspace(0, math.log(1000.0), half, device=time.device))
    angles = time.float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def keep_tokens(logits: Tensor, keep: Tensor, x_t: Tensor, mask_id: int | None) -> Tensor:
    """Return ``logits + keep onehot(x_t)``, with -inf for the mask.

    At small t most tokens are right as they are (D3PM, appendix B.2, has a fixed multiple).

    Args:
        logits: ``(B, *S, K)``.
        keep: the multiple, ``(B, 1)``.
        x_t: integers ``(B, *S)`` in [0, K).
        mask_id: a class that is never predicted, or None.
    """
    keep = keep.view(-1, *[1] * x_t.ndim)
    kept: Tensor = logits + keep * F.one_hot(x_t.long(), logits.shape[-1])
    if mask_id is not None:
        kept[..., mask_id] = -torch.inf
    return kept
