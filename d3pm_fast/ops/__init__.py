"""The registered operations, ``torch.ops.d3pm_fast.*``, and the choice among implementations.

An operation is a file: its signature, its meaning to compilers, and how each implementation is
called. All trust their arguments: tokens are int64, all tensors contiguous.
"""

from .available import Implementations
from .gap import gap
from .implementations import Implementation, implementation
from .linear import (
    count_open,
    linear_loss,
    linear_loss_and_grad,
    log_prob_gradient,
    log_prob_of_rows,
    predict_of_rows,
    pull_linear,
    sharded_linear_loss,
    sharded_linear_loss_and_grad,
)
from .logistic import logistic_gradient, logistic_logits
from .loss import loss, loss_and_grad
from .loss_strokes import loss_gradient, loss_solve, loss_statistics, loss_sums, merged
from .p_sample import p_sample, shaped_p_sample
from .posterior import p_posterior, p_posterior_grad, q_posterior
from .predict import predict
from .products import products_scan
from .q_sample import q_sample
from .register import Operation
from .score_loss import score_loss, score_loss_and_grad
from .score_step import (
    analytic_p_sample,
    analytic_posterior,
    euler_p_sample,
    euler_posterior,
)
from .shaped import shaped_logits
from .sharded_loss import sharded_loss, sharded_loss_and_grad
from .sharded_step import sharded_p_sample, sharded_posterior

__all__ = [
    "Implementation",
    "Implementations",
    "Operation",
    "analytic_p_sample",
    "analytic_posterior",
    "count_open",
    "euler_p_sample",
    "euler_posterior",
    "gap",
    "implementation",
    "linear_loss",
    "linear_loss_and_grad",
    "log_prob_gradient",
    "log_prob_of_rows",
    "logistic_gradient",
    "logistic_logits",
    "loss",
    "loss_and_grad",
    "loss_gradient",
    "loss_solve",
    "loss_statistics",
    "loss_sums",
    "merged",
    "p_posterior",
    "p_posterior_grad",
    "p_sample",
    "predict",
    "predict_of_rows",
    "products_scan",
    "pull_linear",
    "q_posterior",
    "q_sample",
    "score_loss",
    "score_loss_and_grad",
    "shaped_logits",
    "shaped_p_sample",
    "sharded_linear_loss",
    "sharded_linear_loss_and_grad",
    "sharded_loss",
    "sharded_loss_and_grad",
    "sharded_p_sample",
    "sharded_posterior",
]
