"""The meaning of every operation: plain PyTorch, in log space, nothing ever added to a log.

Slow and large on purpose; every kernel is tested against these functions, and these against
explicit matrices. All but ``logistic_logits`` and ``shaped_logits`` take tokens ``(B, *S)``,
logits ``(B, *S, K)``, and what :func:`chain` makes of a transition and the times.
"""

from .logistic import logistic_logits
from .loss import loss
from .p_sample import p_sample
from .posterior import p_posterior, q_posterior
from .products import cumulative_products
from .q_sample import q_sample
from .shaped import shaped_logits
from .step import MakeStep, chain

__all__ = [
    "MakeStep",
    "chain",
    "cumulative_products",
    "logistic_logits",
    "loss",
    "p_posterior",
    "p_sample",
    "q_posterior",
    "q_sample",
    "shaped_logits",
]
