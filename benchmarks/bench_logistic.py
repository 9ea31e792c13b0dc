"""The loss of (loc, log_scale) beside that of logits which are made first; float32."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import d3pm_fast as d3

from .bench_loss import distance
from .cases import GAUSSIAN, OURS, Inputs, Operation, Provider, Run, as_pytest, cases
from .providers import copy

CASES = cases("logistic", (8, 1024, 256), families=("uniform", GAUSSIAN))


def loss_and_gradients(i: Inputs, loss: Callable[..., Tensor]) -> Run:
    def run() -> tuple[Tensor, Tensor]:
        loc, log_scale = (i.logits[..., n].clone().requires_grad_() for n in range(2))
        value = loss(loc, log_scale)
        value.backward()
        return value.detach(), torch.stack([loc.grad, log_scale.grad])

    return run


def ours(i: Inputs) -> Run:
    def loss(*pair: Tensor) -> Tensor:
        return d3.functional.loss(i.transition, pair, i.x0, i.x_t, i.t)

    return loss_and_gradients(i, loss)


def logits_first(i: Inputs) -> Run:
    k = i.case.num_classes
    edges = (2 * torch.arange(k + 1) - k) / (k - 1)

    def loss(loc: Tensor, log_scale: Tensor) -> Tensor:
        inverse = torch.exp(2 - log_scale).unsqueeze(-1)
        scaled = (edges - loc.unsqueeze(-1)) * inverse
        width = torch.log(-torch.expm1(-2 / (k - 1) * inverse))
        logits = F.logsigmoid(scaled[..., 1:]) + F.logsigmoid(-scaled[..., :-1]) + width
        return d3.functional.loss(i.transition, logits, i.x0, i.x_t, i.t)

    return loss_and_gradients(i, loss)


def bytes_moved(i: Inputs) -> int:
    """Read two numbers a token and write two."""
    return 4 * i.case.num_tokens * i.logits.itemsize


LOGISTIC = Operation(
    "logistic",
    CASES,
    {
        OURS: Provider(ours),
        "logits first": Provider(logits_first, tolerance=2e-2),
        "copy": Provider(lambda i: copy(bytes_moved(i))),
    },
    bytes_moved,
    distance,
)
test_logistic = as_pytest(LOGISTIC)
