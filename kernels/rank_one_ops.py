"""The kernels for rank-one chains, gathered."""

from .loss import loss, loss_and_grad
from .p_sample import p_sample, shaped_p_sample
from .posterior import p_posterior, p_posterior_grad, q_posterior
from .q_sample import q_sample

__all__ = [
    "loss",
    "loss_and_grad",
    "p_posterior",
    "p_posterior_grad",
    "p_sample",
    "q_posterior",
    "q_sample",
    "shaped_p_sample",
]
