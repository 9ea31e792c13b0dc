"""Rows whose digits a call's arithmetic does not keep, for a second calculation."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ...chains.structures import MatrixStep
from ...reference.logspace import spread
from .groups import StepGroups

LOG_SPACE_BYTES = 1 << 26


class Recompute:
    """The inexact tokens of a call: what is calculated again, in float64 or in log space."""

    def __init__(self, run: StepGroups, logits: Tensor) -> None:
        self.tokens = torch.cat(run.inexact)
        self.was_float64 = logits.dtype == torch.float64
        self.logits = logits.flatten(0, -2)[self.tokens].double()
        self.x_t = run.x_t.flatten()[self.tokens]
        times = (spread(time, run.x_t.shape).flatten()[self.tokens] for time in (run.t, run.s))
        self.t, self.s = times
        self.chain = run.chain

    @property
    def step(self) -> MatrixStep:
        """The steps of these tokens."""
        return MatrixStep(self.t, self.s, self.chain.handle)

    def in_log_space(self) -> Iterator[tuple[slice, Tensor, MatrixStep]]:
        """Yield slices of few tokens, their logits as a leaf, and their steps."""
        size = max(LOG_SPACE_BYTES // (8 * self.chain.num_classes**2), 1)
        with torch.enable_grad():
            for first in range(0, len(self.tokens), size):
                part = slice(first, first + size)
                step = MatrixStep(self.t[part], self.s[part], self.chain.handle)
                yield part, self.logits[part].detach().requires_grad_(), step
