"""A rank-one chain among visible classes beside a mask that stays: ``Q`` is of rank two.

A visible token is masked with probability c, and otherwise moves as a chain of its own does, which
never enters the mask. The mask stays. Data never hold it. So their ``Qbar_t`` is of rank one, and
so is what a step needs once x_t is known:

* x_t is visible: it never was the mask. The step is that of the visible classes' own chain.
* x_t is the mask: ``Q[j, mask]`` is c for every visible j, and 1 for the mask itself. The step is
  that of an absorbing chain, with the marginals ``Qbar_s`` of this one.
"""

from typing import Any

import torch
from torch import Tensor

from .._loadable import loadable
from .continuous import ContinuousChain
from .rank_one import LEAST, RankOneChain
from .structures import RankOneMarginal, RankOneStep

__all__ = ["VisibleAndMask"]

_LATE = 1 - 1e-6  # in continuous time: later ones are rare, and the parts look at early ones


@loadable
class VisibleAndMask(RankOneChain):
    """The chain of two: both of T steps, or both in continuous time.

    Its tables have the steps to visible tokens, then those to the mask, then one that leads from
    nowhere else, of a token that was the mask.

    Attributes:
        visible: the chain of tokens that are not masked, over all K classes.
        masking: the absorbing chain.
    """

    asks_tokens = True
    _TABLES = ("pi", "pi_cdf", "_end", "step_table", "product_table")

    def __init__(self, family: str, visible: RankOneChain, masking: RankOneChain) -> None:
        super().__init__(
            family, visible.num_classes, visible.num_steps, masking.mask_id, data_has_mask=False
        )
        self.visible, self.masking = visible, masking
        self.pi, self.pi_cdf = visible.pi, visible.pi_cdf
        self.step_table = self.product_table = None
        if self.has_steps:
            times = torch.arange(self.num_steps + 1, device="cpu")
            self.step_table = self.step_record(times).table
            self.product_table = self.marginal_record(times).table
        else:
            times = torch.tensor([0.5, _LATE], dtype=torch.float64, device="cpu")
        products = self.product_coefficients(times)
        self._end = self.product_coefficients(times.new_tensor(self.num_steps or 1))
        rarest = 1 / self.num_classes if self.pi is None else float(self.pi[self.pi > 0].min())
        entries = torch.cat([products[:, 1] * rarest, products[:, 2]])
        is_rare = bool(((entries > 0) & (entries < LEAST[torch.float32])).any())
        self.needs_float64 = is_rare or visible.needs_float64 or masking.needs_float64
        self._defined_by(visible, masking)

    @property
    def device(self) -> torch.device:
        """Where the numbers are."""
        return self.visible.device

    def product_coefficients(self, t: Tensor) -> Tensor:
        """Return ``(Abar_t, Wbar_t, Mbar_t)`` of ``Qbar_t``, float64 ``(*t.shape, 3)``.

        They are of a token that starts visible.
        """
        return _both(self.visible.product_coefficients(t), self.masking.product_coefficients(t))

    def step_coefficients(self, s: Tensor, t: Tensor) -> Tensor:
        """Return ``a, w, m`` of ``Q_{s->t}`` of a visible token, ``Qbar_s`` and s, ``(*, 7)``."""
        parts = (chain.step_coefficients(s, t) for chain in (self.visible, self.masking))
        visible, masking = parts
        return torch.cat(
            [
                _both(visible[..., :3], masking[..., :3]),
                _both(visible[..., 3:6], masking[..., 3:6]),
                visible[..., 6:],
            ],
            dim=-1,
        )

    def step_record(self, t: Tensor, s: Tensor | None = None) -> RankOneStep:
        """Return what operations are given of the steps, of tokens that are visible at t."""
        if s is None and self.step_table is not None:
            return self._record(t, self.step_table)
        return self._joined(self.visible.step_record(t, s), self.masking.step_record(t, s))

    def loss_record(self, t: Tensor, s: Tensor | None = None) -> tuple[RankOneStep, bool]:
        """Return what a loss is given of steps, or of the bound's density at t without an s."""
        if s is None and isinstance(self.visible, ContinuousChain):
            (visible, _), (masking, _) = self.visible.loss_record(t), self.masking.loss_record(t)
            return self._joined(visible, masking), True
        return self.step_record(t, s), False

    def marginal_record(self, t: Tensor) -> RankOneMarginal:
        """Return what operations are given of ``q(x_t | x_0)``, of visible data."""
        if self.product_table is not None:
            numbers = self.pi_cdf, self.mask_id, self.num_classes
            return RankOneMarginal(t, self.product_table, *numbers)
        rows, table, pi_cdf, _, num_classes = self.visible.marginal_record(t)
        table = _both(table, self.masking.marginal_record(t).table)
        stays = table.new_tensor([[1.0, 0.0, 0.0]])
        return RankOneMarginal(rows, torch.cat([table, stays]), pi_cdf, self.mask_id, num_classes)

    def of_tokens(self, record: Any, x0: Tensor | None = None, x_t: Tensor | None = None) -> Any:
        """Return the record with each token's own row."""
        x = x0 if x_t is None else x_t
        assert x is not None
        last = len(record.table) - 1
        num_times = last if x_t is None else last // 2
        rows = record.rows.reshape(*record.rows.shape, *(1,) * (x.ndim - record.rows.ndim))
        exists = (rows >= 0) & (rows < num_times)
        if x_t is not None:
            rows = rows + num_times * (x_t == self.mask_id)
        if x0 is not None:
            rows = torch.where(x0 == self.mask_id, last, rows)
        return type(record)(rows.where(exists, -1).contiguous(), *record[1:])

    def log_reach(self, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Return ``log Qbar_t[x_0, x_t]``, float64, for tensors of one shape, all trusted."""
        stays = (x_t == self.mask_id).double().log()
        return super().log_reach(x0, x_t, t).where(x0 != self.mask_id, stays)

    def stationary(self) -> Tensor:
        """Return the distribution of x_T if all visible tokens were redrawn, float64 ``(K,)``."""
        keep, base, mask = self._end
        return self._spread_vector(keep + base, mask)

    def prior(self) -> Tensor:
        """Return ``KL(q(x_T | x_0) || stationary)`` in nats for each x_0, float64 ``(K,)``."""
        terms = self._prior(self._end)
        terms[self.mask_id] = -self._end[2].log()
        return terms

    def q_matrix(self, t: Any, s: Any = None) -> Tensor:
        """Return ``Q_{s->t}``, float64 ``(K, K)``, for looking and for tests.

        Args:
            t: 1..T, or in [0, 1].
            s: from 0 on, up to t; t - 1 unless given, in continuous time 0.

        Raises:
            IndexError: a time elsewhere.
        """
        t = self._check_time(t, least=1 if self.has_steps else 0)
        s = (t - 1 if self.has_steps else 0.0) if s is None else s
        if not 0 <= s <= t:
            raise IndexError(f"s must lie in [0, t], got s = {s} with t = {t}")
        times = torch.tensor([s, t], dtype=self.time_dtype, device=self.device)
        return self._matrix(*self.step_coefficients(*times)[:3])

    def _q_matrix(self, t: Any) -> Tensor:
        return self.q_matrix(t)

    def _q_bar_matrix(self, t: Any) -> Tensor:
        time = torch.tensor(t, dtype=self.time_dtype, device=self.device)
        return self._matrix(*self.product_coefficients(time))

    def _matrix(self, keep: Tensor, base: Tensor, mask: Tensor) -> Tensor:
        made = super()._matrix(keep, base, mask)
        made[self.mask_id] = 0
        made[self.mask_id, self.mask_id] = 1
        return made

    def _check_time(self, t: Any, least: int) -> Any:
        if self.has_steps:
            return super()._check_time(t, least)
        return self.visible._check_time(t, least)

    def _joined(self, visible: RankOneStep, masking: RankOneStep) -> RankOneStep:
        """Return the record of both kinds of steps, from those of both chains."""
        to_visible, masked = visible.table, masking.table
        marginals = _both(to_visible[:, 3:6], masked[:, 3:6])
        to_mask = torch.cat([masked[:, :3], marginals, masked[:, 6:]], dim=1)
        stays = to_mask.new_tensor([[1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]])
        return self._record(visible.rows, torch.cat([to_visible, to_mask, stays]))


def _both(visible: Tensor, masking: Tensor) -> Tensor:
    """Return the coefficients of a token that moves by the one chain, and then by the other."""
    keep, base, _ = visible.unbind(-1)
    unmasked, _, mask = masking.unbind(-1)
    return torch.stack([keep * unmasked, base * unmasked, mask], dim=-1)
