"""The log-probabilities log p(x_{t-1} | x_t), forward only."""

import torch
from torch import Tensor

import d3pm_fast as d3

from .cases import OURS, Inputs, Operation, Provider, Run, as_pytest, cases
from .providers import closed_form, compiled, copy

CASES = cases("posterior", (8, 1024, 256))


def ours(i: Inputs) -> Run:
    args = i.transition, i.logits, i.x_t, i.t
    return lambda: d3.functional.p_posterior(*args, first_step="logits")


def closed_eager(i: Inputs) -> Run:
    log_p = closed_form(i.transition).log_p
    return lambda: log_p(i.logits, i.x_t, i.t)


def closed_compiled(i: Inputs) -> Run:
    log_p = compiled(closed_form(i.transition).log_p)
    return lambda: log_p(i.logits, i.x_t, i.t)


def log_softmax(i: Inputs) -> Run:
    return lambda: torch.log_softmax(i.logits, dim=-1)


def bytes_moved(i: Inputs) -> int:
    """Read the logits, write the log-probabilities."""
    return 2 * i.logits.nbytes


def distance(ours: Tensor, other: Tensor, i: Inputs) -> float:
    """Return the largest difference of two probabilities."""
    return float((ours.exp() - other.exp()).abs().max())


POSTERIOR = Operation(
    "posterior",
    CASES,
    {
        OURS: Provider(ours),
        "closed form eager": Provider(closed_eager, tolerance=1e-4),
        "closed form compiled": Provider(closed_compiled, tolerance=1e-4),
        "log_softmax": Provider(log_softmax),
        "copy": Provider(lambda i: copy(bytes_moved(i))),
    },
    bytes_moved,
    distance,
)
test_posterior = as_pytest(POSTERIOR)
