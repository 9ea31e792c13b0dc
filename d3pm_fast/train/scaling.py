"""The factor that keeps the gradients of float16 off 0: it has nothing between 0 and 6e-8."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from .distributed import alike


class GradientScale:
    """A power of two: half as large after a step that overflows, twice after many that do not.

    All processes know whether the whole gradient is finite, and so have the same factor.

    Args:
        enabled: False for a factor of 1.
    """

    START, GROWS_AFTER = 2.0**16, 2000

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self.factor = self.START if enabled else 1.0
        self.good_steps = 0

    def undo(self, weights: Iterable[nn.Parameter], processes: int) -> None:
        """Make sums, without the factor, of gradients that are means over the processes."""
        factor = processes / self.factor
        if factor != 1:
            for gradients in alike(w.grad for w in weights if w.grad is not None):
                torch._foreach_mul_(gradients, factor)

    def can_shrink(self) -> bool:
        """Return whether a smaller factor may help a gradient that is not finite."""
        return self.factor > 1

    def update(self, is_finite: bool) -> None:
        """Take in whether the gradient of a step was finite."""
        if not self.enabled:
            return
        self.good_steps = self.good_steps + 1 if is_finite else 0
        if not is_finite:
            self.factor /= 2
        elif self.good_steps % self.GROWS_AFTER == 0:
            self.factor *= 2

    def state_dict(self) -> dict[str, Any]:
        """Return what ``load_state_dict`` takes."""
        return {"factor": self.factor, "good_steps": self.good_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what ``state_dict`` returned."""
        self.factor, self.good_steps = state["factor"], state["good_steps"]
