"""Operations on logits ``hidden weight^T + bias`` that are made some rows at a time."""

from .log_prob import log_prob_gradient, log_prob_of_rows
from .loss import (
    linear_loss,
    linear_loss_and_grad,
    sharded_linear_loss,
    sharded_linear_loss_and_grad,
)
from .predict import predict_of_rows
from .products import pull_linear
from .tokens import count_open

__all__ = [
    "count_open",
    "linear_loss",
    "linear_loss_and_grad",
    "log_prob_gradient",
    "log_prob_of_rows",
    "predict_of_rows",
    "pull_linear",
    "sharded_linear_loss",
    "sharded_linear_loss_and_grad",
]
