"""How far the logit of a token's class is below the largest of its row."""

from torch import Tensor

from .logspace import compute_dtype


def gap(logits: Tensor, x: Tensor) -> Tensor:
    """Return ``max_j logit_j - logit_x`` of each token, ``(B, *S)``."""
    wide = logits.to(compute_dtype(logits.dtype))
    return wide.amax(dim=-1) - wide.gather(-1, x.unsqueeze(-1)).squeeze(-1)
