"""The meaning of every operation: plain PyTorch, in log space, nothing ever added to a log.

Slow and large on purpose; every kernel is tested against these functions, and these against
explicit matrices. Tokens are ``(B, *S)``, logits ``(B, *S, K)``; a step or a marginal is the record
that a chain makes of the times, as ``transition.step_record(t, s)``.
"""

from .linear import linear_logits
from .logistic import logistic_logits
from .loss import loss
from .p_sample import p_sample
from .posterior import p_posterior, q_posterior
from .predict import predict
from .products import cumulative_products
from .q_sample import q_sample
from .score_loss import score_divergence, score_loss
from .score_step import (
    analytic_p_sample,
    analytic_posterior,
    euler_p_sample,
    euler_posterior,
)
from .shaped import shaped_logits, shaped_row
from .sharded import sharded_loss, sharded_p_sample, sharded_posterior, whole_logits
from .sharded_predict import sharded_predict
from .step import looked_up

__all__ = [
    "analytic_p_sample",
    "analytic_posterior",
    "cumulative_products",
    "euler_p_sample",
    "euler_posterior",
    "linear_logits",
    "logistic_logits",
    "looked_up",
    "loss",
    "p_posterior",
    "p_sample",
    "predict",
    "q_posterior",
    "q_sample",
    "score_divergence",
    "score_loss",
    "shaped_logits",
    "shaped_row",
    "sharded_loss",
    "sharded_p_sample",
    "sharded_posterior",
    "sharded_predict",
    "whole_logits",
]
