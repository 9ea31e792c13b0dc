"""A bound in training that does not jump with the times that a batch happens to draw."""

from typing import Any

import torch
from torch import Tensor

from .config import T_MIN


class RunningBound:
    """The variational bound, summed over stretches of time, each with a running mean of its own.

    The loss of a time can be thousands of times that of another, as at t = 1 for chains that
    change few tokens there: an estimate from one batch is then set by the times in it.

    In continuous time it is the density's integral, without the step from t_min to 0.

    Args:
        num_steps: T; None in continuous time.
    """

    STRETCHES = 20
    DECAY = 0.97  # a step

    def __init__(self, num_steps: int | None) -> None:
        if num_steps is None:
            ends = torch.linspace(T_MIN, 1, self.STRETCHES + 1, dtype=torch.float64)
        else:
            # t = 1 alone, then stretches as equal in length as can be.
            others = torch.linspace(1, num_steps, self.STRETCHES + 1).round().unique().long()
            ends = torch.cat([torch.tensor([0, 1]), others[others > 1]])
        self.last, self.lengths = ends[1:], ends.diff()
        self.sums = torch.zeros(len(self.last), dtype=torch.float64)
        self.counts = torch.zeros(len(self.last), dtype=torch.float64)

    def sums_of(self, t: Tensor, nats: Tensor, tokens: Tensor) -> Tensor:
        """Return what a batch, or a part of it, adds to the stretches, float64 ``(2, n)``.

        Args:
            t: times ``(B,)`` in 1..T, or float64 in [t_min, 1].
            nats: the loss of each item, the sum over the tokens that count, ``(B,)``.
            tokens: how many those are, ``(B,)``.
        """
        stretch = torch.searchsorted(self.last, t.cpu())
        sums = torch.zeros(2, len(self.last), dtype=torch.float64)
        return sums.index_add_(1, stretch, torch.stack([nats.cpu().double(), tokens.cpu()]))

    def update(self, sums: Tensor) -> None:
        """Take in a batch: what :meth:`sums_of` returns of all of it."""
        for running, new in zip((self.sums, self.counts), sums, strict=True):
            running.mul_(self.DECAY).add_(new)

    def nats(self) -> float | None:
        """Return the bound without its prior, nats a token; None while a stretch is not seen."""
        if not bool((self.counts > 0).all()):
            return None
        return float((self.lengths * self.sums / self.counts).sum())

    def state_dict(self) -> dict[str, Any]:
        """Return what ``load_state_dict`` takes."""
        return {"sums": self.sums, "counts": self.counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what ``state_dict`` returned."""
        self.sums.copy_(state["sums"])
        self.counts.copy_(state["counts"])
