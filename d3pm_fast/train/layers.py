"""What the networks have in common: how the time comes in and how the logits go out."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .._collectives import SumGradient
from ..functional import Sharded
from ..records import Sharding


def sinusoids(time: Tensor, features: int) -> Tensor:
    """Return the sines and cosines of times in [0, 1], ``(B,)``, as ``(B, features)``.

    The fastest ones advance by one radian in 1/1000, a step of T = 1000.
    """
    half = features // 2
    frequencies = torch.exp(torch.linspace(0, math.log(1000.0), half, device=time.device))
    angles = time.float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def keep_tokens(
    logits: Tensor,
    keep: Tensor,
    x_t: Tensor,
    mask_id: int | None,
    sharding: Sharding | None = None,
) -> Tensor | Sharded:
    """Return ``logits + keep onehot(x_t)``, with -inf for the mask.

    At small t most tokens are right as they are (D3PM, appendix B.2, has a fixed multiple).

    Args:
        logits: ``(B, *S, K)``, or those of this process's classes.
        keep: the multiple, ``(B, 1)``.
        x_t: integers ``(B, *S)`` in [0, K).
        mask_id: a class that is never predicted, or None.
        sharding: how the classes are shared out; None where they are not.
    """
    first = 0
    if sharding is not None:
        first, keep = sharding.shard.first, SumGradient.apply(keep, sharding.group)  # type: ignore[no-untyped-call]
    keep = keep.view(-1, *[1] * x_t.ndim)
    classes = torch.arange(first, first + logits.shape[-1], device=x_t.device)
    kept = logits + keep * (x_t.unsqueeze(-1) == classes)
    if mask_id is not None:
        kept.masked_fill_(classes == mask_id, -torch.inf)
    if sharding is None:
        return kept
    padded = F.pad(kept, (0, sharding.size - kept.shape[-1]))
    return Sharded(padded, sharding.group, sharding.num_logits)
