"""``torch.ops.d3pm_fast.score_loss`` and ``score_loss_and_grad``: the loss of scores.

Both take the record of a loss, whose logits are the log scores.
"""

from typing import Any

import torch
from torch import Tensor

from .. import reference
from .._compiled import cpu
from ..chains.structures import RANK_ONE, RankOneStep
from ..records import Loss
from ..reference.logspace import compute_dtype
from .host import pointer, raise_bad_token
from .loss import by_tokens, fake_loss, fake_loss_and_grad
from .register import Operation

score_loss = Operation("score_loss", fake_loss)
score_loss_and_grad = Operation("score_loss_and_grad", fake_loss_and_grad)


def levels_of(pi: Tensor | None, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
    """Return two parts of log pi, the first a multiple of 2^-16; 0 and 0 where pi is 0."""
    if pi is None:
        return None, None
    log_pi = pi.where(pi > 0, 1).log()
    levels = (log_pi * 65536).round() / 65536
    return levels.to(dtype), (log_pi - levels).to(dtype)


def _on_cpu(of: Loss[RankOneStep], reduction: str, late: bool | None = None) -> Any:
    levels, rests = levels_of(of.step.pi, compute_dtype(of.logits.dtype))

    def compute(call: tuple[Any, ...]) -> None:
        record = call, pointer(of.step.pi), pointer(levels), pointer(rests)
        if cpu.score_loss(str(of.logits.dtype), record, torch.get_num_threads()):
            raise_bad_token(of)

    return by_tokens(compute, of, reduction, late)


score_loss.serve("reference", reference.score_loss, [RANK_ONE])
score_loss.serve("cpu", _on_cpu, [RANK_ONE])

score_loss_and_grad.serve("cpu", _on_cpu, [RANK_ONE])
