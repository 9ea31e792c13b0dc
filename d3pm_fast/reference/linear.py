"""The logits of a head, as a whole."""

import torch.nn.functional as F
from torch import Tensor

from .logspace import filled


def linear_logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, num_classes: int, forbidden: int = -1
) -> Tensor:
    """Return ``hidden weight^T + bias``, ``(B, *S, K)``, with -inf at a class, -1 for none."""
    logits = F.linear(hidden, weight, bias)
    return logits if forbidden < 0 else filled(logits, num_classes, forbidden)
