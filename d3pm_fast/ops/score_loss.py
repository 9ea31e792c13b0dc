"""``torch.ops.d3pm_fast.score_loss`` and ``score_loss_and_grad``: the loss of scores.

Both take the record of a loss, whose logits are the log scores.
"""

from typing import Any

import torch

from .. import reference
from .._compiled import cpu
from ..chains.structures import RANK_ONE, RankOneStep
from ..records import Loss
from ..reference.logspace import compute_dtype
from ..reference.score_loss import Levels, levels_of
from .host import pointer, raise_bad_token, start_cuda
from .kernel import triton_kernel
from .loss import by_tokens, fake_loss, fake_loss_and_grad
from .register import Operation

score_loss = Operation("score_loss", fake_loss)
score_loss_and_grad = Operation("score_loss_and_grad", fake_loss_and_grad)


def _on_cpu(of: Loss[RankOneStep], reduction: str, late: bool | None = None) -> Any:
    levels = levels_of(of.step.pi, compute_dtype(of.logits.dtype))

    def compute(call: tuple[Any, ...]) -> None:
        record = _record(of, call, levels)
        if cpu.score_loss(str(of.logits.dtype), record, torch.get_num_threads()):
            raise_bad_token(of)

    return by_tokens(compute, of, reduction, late)


def _on_cuda(of: Loss[RankOneStep], reduction: str, late: bool | None = None) -> Any:
    levels = levels_of(of.step.pi, compute_dtype(of.logits.dtype))

    def start(call: tuple[Any, ...]) -> None:
        start_cuda("score_loss", of.logits, str(of.logits.dtype), _record(of, call, levels))

    return by_tokens(start, of, reduction, late)


def _record(of: Loss[RankOneStep], call: tuple[Any, ...], levels: Levels) -> tuple[Any, ...]:
    return call, pointer(of.step.pi), *map(pointer, levels)


score_loss.serve("reference", reference.score_loss, [RANK_ONE])
score_loss.serve("cpu", _on_cpu, [RANK_ONE])
score_loss.serve("cuda", _on_cuda, [RANK_ONE])
score_loss.serve("triton", triton_kernel("rank_one.score_loss.score_loss"), [RANK_ONE])

score_loss_and_grad.serve("cpu", _on_cpu, [RANK_ONE])
score_loss_and_grad.serve("cuda", _on_cuda, [RANK_ONE])
score_loss_and_grad.serve("triton", triton_kernel("rank_one.score_loss.score_loss"), [RANK_ONE])
