"""Rank-one chains in continuous time: what is kept is a function alpha(t) of t in [0, 1]."""

from abc import abstractmethod

import torch
from torch import Tensor

from .._arrays import ArrayLike
from .._loadable import loadable
from .base import running_sums
from .rank_one import RankOneChain, RankOneTransition
from .structures import RankOneMarginal, RankOneStep
from .time import LAST, InContinuousTime, Schedule

__all__ = ["ContinuousChain", "ContinuousTransition", "rank_one_chain"]

# Of the law of redrawn tokens: times of 1e-9, then, enter a class with 1e-18 or more, and products
# of two such probabilities are normal numbers of float32.
_LEAST_SHARE = 1e-9


class ContinuousChain(InContinuousTime, RankOneChain):
    """What rank-one chains in continuous time share."""

    _TABLES = ("pi", "pi_cdf", "_end")
    _end: Tensor  # the coefficients of Qbar_1

    def __init__(
        self,
        family: str,
        num_classes: int,
        pi: Tensor | None,
        mask_id: int,
        data_has_mask: bool,
    ) -> None:
        super().__init__(family, num_classes, self.num_steps, mask_id, data_has_mask)
        self.pi = pi
        self.pi_cdf = None if pi is None else running_sums(pi)
        self._rarest = 1 / num_classes if pi is None else float(pi[pi > 0].min())

    @property
    def device(self) -> torch.device:
        """Where the numbers are."""
        return self._end.device

    def step_record(self, t: Tensor, s: Tensor | None = None) -> RankOneStep:
        """Return what operations are given of the steps ``x_t -> x_s``, which need an s."""
        assert s is not None  # checked by the operations
        return self._steps_between(s, t, (s >= 0) & (s < t) & (t <= 1))

    def loss_record(self, t: Tensor, s: Tensor | None = None) -> tuple[RankOneStep, bool]:
        """Return what a loss is given of steps, or of the bound's density at t without an s."""
        return (self._density_record(t), True) if s is None else (self.step_record(t, s), False)

    def _density_record(self, t: Tensor) -> RankOneStep:
        """Return what a loss is given of the bound's density at t.

        Its columns are those of steps with ``a = 1``, and with rates for ``w`` and ``m``, then
        ``Qbar_t``, then t. At t = 1, where a rate may be infinite, they are of the number before.
        """
        valid = (t > 0) & (t <= 1)
        at = t.where(valid, 1).clamp(max=LAST).flatten()
        rates = torch.stack([torch.ones_like(at), *self._rates(at)], dim=-1)
        table = torch.cat([rates, self.product_coefficients(at), at.unsqueeze(-1)], dim=-1)
        rows = torch.arange(t.numel(), device=t.device).view(t.shape).where(valid, -1)
        return self._record(rows, table)

    def marginal_record(self, t: Tensor) -> RankOneMarginal:
        """Return what operations are given of ``q(x_t | x_0)``."""
        valid = (t >= 0) & (t <= 1)
        table = self.product_coefficients(t.where(valid, 0).flatten())
        rows = torch.arange(t.numel(), device=t.device).view(t.shape).where(valid, -1)
        return RankOneMarginal(rows, table, self.pi_cdf, self.mask_id, self.num_classes)

    def prior(self) -> Tensor:
        """Return ``KL(q(x_1 | x_0) || stationary)`` in nats for each x_0, float64 ``(K,)``."""
        return self._prior(self._end)

    def _q_between(self, s: float, t: float) -> Tensor:
        times = torch.tensor([s, t], dtype=torch.float64, device=self.device)
        return self._matrix(*self.step_coefficients(*times)[:3])

    @abstractmethod
    def _rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return at which rates a token is redrawn from pi, and masked, for t in (0, 1)."""


@loadable
class ContinuousTransition(ContinuousChain):
    """The chain with ``Q_{s->t} = a I + (1 - a) 1 (g pi + (1 - g) e_mask)^T``.

    ``a = alpha(t) / alpha(s)``; the share g is the same at all times. Time 0 are the data: where
    alpha(0) < 1, a step from there leads over a jump, and has ``a = alpha(t)``.
    """

    def __init__(
        self,
        family: str,
        num_classes: int,
        schedule: Schedule,
        pi: Tensor | None,
        base_share: float,
        mask_id: int = -1,
        data_has_mask: bool = True,
    ) -> None:
        super().__init__(family, num_classes, pi, mask_id, data_has_mask)
        self.schedule = schedule
        self._share = base_share
        self.redraws = base_share != 0
        self._end = self.product_coefficients(torch.ones((), dtype=torch.float64, device="cpu"))
        shares = [share for share in (base_share * self._rarest, 1 - base_share) if share > 0]
        self.needs_float64 = min(shares) < _LEAST_SHARE
        grid = torch.linspace(0, 1, 17, dtype=torch.float64, device="cpu")
        self._defined_by(schedule.alpha(grid), base_share, () if pi is None else pi)

    def product_coefficients(self, t: Tensor) -> Tensor:
        """Return ``(Abar_t, Wbar_t, Mbar_t)`` of ``Qbar_t``, float64 ``(*t.shape, 3)``.

        Args:
            t: float64 in [0, 1], any shape.
        """
        lost = self._lost(t)
        base = lost * self._share
        return torch.stack([self.schedule.alpha(t).where(t > 0, 1), base, lost - base], dim=-1)

    def _lost(self, t: Tensor) -> Tensor:
        """Return the probability that a token is redrawn until t."""
        return self.schedule.one_minus_alpha(t).where(t > 0, 0)

    def step_coefficients(self, s: Tensor, t: Tensor) -> Tensor:
        """Return what the step ``x_t -> x_s`` needs, float64 ``(*t.shape, 7)``.

        Args:
            s: float64 in [0, 1], any shape.
            t: float64 in [0, 1], the shape of ``s``, nowhere below it.
        """
        spread = self.schedule.beta(s, t).where(s > 0, self._lost(t))
        base = spread * self._share
        step = torch.stack([1 - spread, base, spread - base], dim=-1)
        return torch.cat([step, self.product_coefficients(s), s.unsqueeze(-1)], dim=-1)

    def stationary(self) -> Tensor:
        """Return the distribution of x_1, whatever x_0 was, float64 ``(K,)``."""
        share = self._end.new_tensor(self._share)
        return self._spread_vector(share, 1 - share)

    def _rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        rate = self.schedule.rate(t)
        base = rate * self._share
        return base, rate - base


def rank_one_chain(
    family: str,
    num_classes: int,
    betas: ArrayLike | Schedule,
    pi: Tensor | None,
    base_share: float | Tensor,
    mask_id: int = -1,
    data_has_mask: bool = True,
) -> RankOneChain:
    """Return the chain of a family: of T steps for betas, in continuous time for a schedule."""
    mask = mask_id, data_has_mask
    if not isinstance(betas, Schedule):
        return RankOneTransition(family, num_classes, betas, pi, base_share, *mask)
    return ContinuousTransition(family, num_classes, betas, pi, float(base_share), *mask)
