"""What a step of a masked language model asks of its logits, beside the public ways to get it."""

from typing import Any

import torch
from torch import Tensor

import d3pm_fast as d3

from .bench_p_sample import distance
from .bench_q_sample import TOLERANCE
from .cases import OURS, Inputs, Operation, Provider, Run, as_pytest, cases
from .providers import compiled, copy

CASES = cases("predict", (1, 256, 32768), (1, 64, 151936))


def ours(i: Inputs, **options: Any) -> Run:
    return lambda: d3.functional.predict(i.transition, i.logits, i.x_t, i.t, **options).token


def gumbel(logits: Tensor, x_t: Tensor, mask_id: int) -> Tensor:
    """Draw by noise of float64 and take each token's probability, the prediction's entropy too."""
    wide = logits.double()
    noise = -torch.log(-torch.log(torch.rand_like(wide)))
    drawn = (wide + noise).argmax(dim=-1)
    law = wide.softmax(dim=-1)
    _confidence, _entropy = facts(law, drawn)
    return drawn if mask_id < 0 else drawn.where(x_t == mask_id, x_t)


def argmax(logits: Tensor, x_t: Tensor, mask_id: int) -> Tensor:
    """Take the likeliest class and its probability, the prediction's entropy too."""
    drawn, law = logits.argmax(dim=-1), logits.softmax(dim=-1)
    _confidence, _entropy = facts(law, drawn)
    return drawn if mask_id < 0 else drawn.where(x_t == mask_id, x_t)


def facts(law: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    confidence = law.gather(-1, drawn.unsqueeze(-1)).squeeze(-1)
    return confidence, -(law * torch.log(law.clamp(min=1e-30))).sum(dim=-1)


def public(way: Any) -> Any:
    return lambda i: lambda: way(i.logits, i.x_t, i.transition.mask_id)


def bytes_moved(i: Inputs) -> int:
    """Read a token, write two classes and six numbers, and read its logits, if it is not known."""
    rows = i.x_t.numel()
    if i.transition.mask_id >= 0:
        rows = int((i.x_t == i.transition.mask_id).sum())
    return 3 * i.x_t.nbytes + 24 * i.x_t.numel() + rows * i.case.num_classes * i.logits.itemsize


PREDICT = Operation(
    "predict",
    CASES,
    {
        OURS: Provider(ours),
        "float64 Gumbel eager": Provider(public(gumbel), TOLERANCE),
        "float64 Gumbel compiled": Provider(public(compiled(gumbel)), TOLERANCE),
        "argmax and softmax eager": Provider(public(argmax)),
        "argmax of ours": Provider(lambda i: ours(i, take="argmax")),
        "copy": Provider(lambda i: copy(bytes_moved(i))),
    },
    bytes_moved,
    distance,
)
test_predict = as_pytest(PREDICT)
