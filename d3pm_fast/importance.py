"""Drawing the time of a training step by the losses that were seen, as ``timesteps`` offers it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ._checks import check_count, check_float, check_shape, check_t_min, check_times
from ._random import uniform_numbers

__all__ = ["ImportanceSampled", "between"]


def between(t_min: float, parts: Tensor) -> Tensor:
    """Return the times at these parts of [t_min, 1], in [0, 1], but never 0 nor 1 itself."""
    return (t_min + (1 - t_min) * parts).clamp(min=2**-53, max=1 - 2**-53)


class ImportanceSampled(nn.Module):
    """Training times that come more often where the loss is large, and weights that make up for it.

    A time has a probability in proportion to the root mean square of the losses that were seen
    there: of all laws that one gives the weighted loss the least variance (Nichol and Dhariwal
    2021, improved DDPM, section 3.3). In continuous time [t_min, 1] is cut into equal bins, in
    each of which times are uniform. The history is on the module's device, where no call waits
    for it, and in its state dict. Each process of several keeps its own.

    Args:
        num_steps: T; None for continuous time.
        bins: how many, in continuous time.
        t_min: of continuous time, in [0, 1).
        decay: in [0, 1), the weight of the history beside that of one more loss, ``1 - decay``.
        least: how many losses each time must have before times are drawn by the history. Until
            then they are uniform.
        uniform_share: the share of times that stay uniform, in (0, 1]: no weight is more than one
            over it.
    """

    mean_square: Tensor
    seen: Tensor

    def __init__(
        self,
        num_steps: int | None,
        bins: int = 64,
        t_min: float = 0.0,
        decay: float = 0.9,
        least: int = 10,
        uniform_share: float = 1e-2,
    ) -> None:
        super().__init__()
        self.num_steps, self.t_min = num_steps, check_t_min(t_min, includes_zero=True)
        self.decay, self.least = decay, check_count("least", least)
        self.uniform_share = uniform_share
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay}")
        if not 0 < uniform_share <= 1:
            raise ValueError(f"uniform_share must lie in (0, 1], got {uniform_share}")
        name, count = ("bins", bins) if num_steps is None else ("num_steps", num_steps)
        check_count(name, count)
        self.register_buffer("mean_square", torch.zeros(count, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(count, dtype=torch.int64))

    @property
    def probabilities(self) -> Tensor:
        """Of each time 1..T, or of each bin, float64 ``(T,)`` or ``(bins,)``."""
        roots = self.mean_square.sqrt()
        share, total = self.uniform_share, roots.sum()
        law = (1 - share) * roots / total + share / len(roots)
        is_known = (self.seen >= self.least).all() & (total > 0)
        return law.where(is_known, 1 / len(roots))

    def sample_t(
        self,
        batch: int,
        low_discrepancy: bool = False,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw training times, and the weight of the loss at each of them.

        The mean of weight times loss is that of the loss at uniform times.

        Args:
            batch: B, how many.
            low_discrepancy: spread them evenly over the probabilities, as
                :func:`d3pm_fast.timesteps.low_discrepancy`; else they are independent.
            generator: None for PyTorch's default generator of the module's device.

        Returns:
            t, int64 ``(B,)``, in continuous time float64; and the weights, float64 ``(B,)``.
        """
        law = self.probabilities
        device = str(law.device) if generator is None else None
        numbers = uniform_numbers(batch, low_discrepancy, generator, device).to(law.device)
        ends = law.cumsum(0)
        numbers = numbers * ends[-1]
        place = torch.searchsorted(ends, numbers, right=True).clamp(max=len(law) - 1)
        weights = 1 / (len(law) * law[place])
        if self.num_steps is not None:
            return place + 1, weights
        within = 1 - ((ends[place] - numbers) / law[place]).clamp(0, 1)
        return between(self.t_min, (place + within) / len(law)), weights

    @torch.no_grad()
    def update(self, t: Tensor, loss: Tensor) -> None:
        """Add losses to the history. NaN, infinite ones, and other times than these do not count.

        Args:
            t: times, any shape.
            loss: the loss at each of them without its weight, the shape of t.
        """
        check_times("t", t, t.shape, self.num_steps is not None)
        check_float("loss", loss)
        check_shape("loss", loss, t.shape)
        count = len(self.seen)
        if self.num_steps is None:
            part = (t.double() - self.t_min) / (1 - self.t_min)
            place = (part * count).floor().long().clamp(max=count - 1)
        else:
            place = t.long() - 1
        counts = (place >= 0) & (place < count) & loss.isfinite()
        place, squares = place.where(counts, 0).flatten(), loss.double().square().where(counts, 0)
        none = torch.zeros_like(self.mean_square)
        new = none.index_add(0, place, counts.double().flatten())
        mean = none.index_add(0, place, squares.flatten()) / new.clamp(min=1)
        # A plain mean of the first ones, then one that forgets.
        share = (new / (self.seen + new).clamp(min=1)).maximum(1 - self.decay**new)
        self.mean_square.lerp_(mean, share)
        self.seen += new.long()

    def extra_repr(self) -> str:
        """Return the sizes, for ``repr``."""
        bins = f", bins={len(self.seen)}, t_min={self.t_min}" if self.num_steps is None else ""
        return f"num_steps={self.num_steps}{bins}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        kept = self.mean_square
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.mean_square = kept.to(self.mean_square.device)  # no .to(dtype) rounds it
        return self
