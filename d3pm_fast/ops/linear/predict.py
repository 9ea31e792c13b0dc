"""What rows of logits say of their tokens, some rows at a time; of known tokens none are made."""

from typing import Any

import torch
from torch import Tensor

from ..._no_law import NoLaw
from ...records import Head, Shaping, TokenRandom
from ...reference.draws import NONE
from ...reference.logspace import compute_dtype
from ...reference.predict import SURE
from .rows import chunks, in_own_dtype


def predict_of_rows(
    kernel: Any,
    hidden: Tensor,
    head: Head,
    known: Tensor,
    random: TokenRandom,
    samples: bool,
    shaping: Shaping,
) -> tuple[Tensor, Tensor]:
    """Return what an implementation's ``predict`` says of ``(N,)`` tokens.

    On a CPU rows of known tokens are left out; elsewhere to count them would have to wait.

    Args:
        kernel: of the operation.
        hidden: ``(N, D)``.
        head: of the logits.
        known: int64 ``(N,)``, as :func:`d3pm_fast.reference.predict` takes it.
        random: of the tokens.
        samples: whether the token is drawn.
        shaping: of the law that it is drawn from.
    """
    chosen = torch.arange(len(known), device=known.device)
    if known.device.type == "cpu":
        chosen = chosen[known == NONE]
        hidden = hidden[chosen]
    tokens = known.unsqueeze(-1).repeat(1, 2)
    numbers = hidden.new_tensor(SURE, dtype=compute_dtype(head.dtype)).repeat(len(known), 1)
    for own, _, logits in chunks(hidden, in_own_dtype(head)):
        rows = chosen[own]
        part = TokenRandom(random.seeds[rows], random.positions[rows], random.step)
        try:
            found = kernel(logits, known[rows], part, samples, shaping)
        except NoLaw as error:
            (row,) = error.index
            raise NoLaw(error.found, (int(rows[row]),)) from None
        tokens[rows], numbers[rows] = found
    return tokens, numbers
