"""The meaning of every operation: plain PyTorch, in log space, nothing ever added to a log.

Slow and large on purpose; every kernel is tested against these functions, and these against
explicit matrices. All take tokens ``(B, *S)``, logits ``(B, *S, K)``, and ``rows``, ``(B,)`` or
``(B, *S)``: the row of ``table`` that holds the coefficients of a token's step.
"""

from .loss import loss
from .p_sample import p_sample
from .posterior import p_posterior, q_posterior
from .q_sample import q_sample

__all__ = ["loss", "p_posterior", "p_sample", "q_posterior", "q_sample"]
