"""Drawing x_{t-1} from the nucleus of a prediction at a temperature, beside sorting its rows."""

from typing import Any

import torch
from torch import Tensor

import d3pm_fast as d3

from .bench_p_sample import distance
from .bench_q_sample import TOLERANCE
from .cases import FEW, OURS, Inputs, Operation, Provider, Run, as_pytest, cases
from .providers import closed_form, copy

CASES = cases("shaped", (8, 1024, 256), (1, 512, 8192))
CASES += cases("shaped", (64, 1024, 256), families=("uniform", FEW))
TEMPERATURE, TOP_K, TOP_P = 0.8, 50, 0.9


def draw(i: Inputs, **options: Any) -> Run:
    shaped = d3.functional.Shaped(i.logits, **options)
    return lambda: d3.functional.p_sample(i.transition, shaped, i.x_t, i.t)


def ours(i: Inputs) -> Run:
    return draw(i, temperature=TEMPERATURE, top_p=TOP_P)


def temperature_alone(i: Inputs) -> Run:
    return draw(i, temperature=TEMPERATURE)


def largest(i: Inputs) -> Run:
    return draw(i, top_k=TOP_K)


def nucleus(logits: Tensor) -> Tensor:
    """Return the logits as it is usually written: by a sort, running sums and a scatter."""
    ranked, classes = (logits / TEMPERATURE).sort(dim=-1, descending=True)
    probabilities = torch.softmax(ranked, dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    cut = ranked.masked_fill(before >= TOP_P, -torch.inf)
    return torch.empty_like(cut).scatter_(-1, classes, cut)


def sorted_first(i: Inputs) -> Run:
    return lambda: d3.functional.p_sample(i.transition, nucleus(i.logits), i.x_t, i.t)


def sorted_gumbel(i: Inputs) -> Run:
    draw = closed_form(i.transition).p_sample_gumbel
    return lambda: draw(nucleus(i.logits), i.x_t, i.t)


def as_predicted(i: Inputs) -> Run:
    return lambda: d3.functional.p_sample(i.transition, i.logits, i.x_t, i.t)


def bytes_moved(i: Inputs) -> int:
    """Read a token, write a token, and read its logits."""
    return 2 * i.x_t.nbytes + i.logits.nbytes


SHAPED = Operation(
    "shaped",
    CASES,
    {
        OURS: Provider(ours),
        "sorted first": Provider(sorted_first, TOLERANCE),
        "sorted, Gumbel eager": Provider(sorted_gumbel, TOLERANCE),
        "temperature alone": Provider(temperature_alone),
        f"top {TOP_K}": Provider(largest),
        "p_sample as predicted": Provider(as_predicted),
        "copy": Provider(lambda i: copy(bytes_moved(i))),
    },
    bytes_moved,
    distance,
)
test_shaped = as_pytest(SHAPED)
