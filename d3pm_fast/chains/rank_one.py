"""Rank-one transitions: ``Q_t = a_t I + 1 u_t^T`` with ``u_t = w_t pi + m_t e_mask``.

``a_t + w_t + m_t = 1``: a token is kept with probability ``a_t``, redrawn from ``pi`` with
``w_t`` and masked with ``m_t``. Products stay in the family (D3PM, appendix A.4 has the uniform
and the absorbing case), so a chain of T steps is O(T) scalars and at most one K-vector:

    Qbar_t = Abar_t I + 1 (Wbar_t pi + Mbar_t e_mask)^T
"""

from abc import abstractmethod

import torch
from torch import Tensor

from .._arrays import ArrayLike, check_probabilities
from .._information import divergence_terms
from .._loadable import loadable
from .base import Transition, running_sums
from .structures import RANK_ONE, RankOneMarginal, RankOneStep

__all__ = ["RankOneChain", "RankOneTransition"]

# exp(-1000) is 0 in float64, and differences of sums of it stay finite where -inf would not.
_LOG_ZERO = -1000.0

# Kernels multiply two probabilities of a chain: the product of two such is a normal number.
LEAST = {torch.float32: 1e-18, torch.float64: 1e-150}


class RankOneChain(Transition):
    """What such chains share, of T steps or in continuous time.

    Attributes:
        pi: float64 ``(K,)``: what a redrawn token is drawn from; None where it is 1/K.
        pi_cdf: float64 ``(K,)``: the running sum of ``pi``, its last entry exactly 1.
    """

    structure = RANK_ONE.name
    steps_forbid = True
    pi: Tensor | None
    pi_cdf: Tensor | None

    @abstractmethod
    def product_coefficients(self, t: Tensor) -> Tensor:
        """Return ``(Abar_t, Wbar_t, Mbar_t)`` of ``Qbar_t``, float64 ``(*t.shape, 3)``."""

    @abstractmethod
    def step_coefficients(self, s: Tensor, t: Tensor) -> Tensor:
        """Return what the step ``x_t -> x_s`` needs, float64 ``(*t.shape, 7)``.

        Columns: ``a, w, m`` of ``Q_{s->t}``, then ``Abar_s, Wbar_s, Mbar_s`` of ``Qbar_s``, then
        ``s`` itself. ``Qbar_t`` follows without cancellation: ``Abar_t = a Abar_s``,
        ``Wbar_t = a Wbar_s + w``, ``Mbar_t = a Mbar_s + m``.
        """

    def log_reach(self, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Return ``log Qbar_t[x_0, x_t]``, float64, for tensors of one shape, all trusted."""
        keep, base, mask = self.product_coefficients(t).unbind(-1)
        vector = 1 / self.num_classes if self.pi is None else self.pi[x_t]
        return (keep * (x0 == x_t) + base * vector + mask * (x_t == self.mask_id)).log()

    def _steps_between(self, s: Tensor, t: Tensor, valid: Tensor) -> RankOneStep:
        """Return the record of steps, NaN for those that are not valid."""
        table = self.step_coefficients(s.where(valid, 0).flatten(), t.where(valid, 0).flatten())
        rows = torch.arange(t.numel(), device=t.device).view(t.shape)
        table = table.where(valid.flatten().unsqueeze(-1), torch.nan)
        return self._record(rows, table)

    def _record(self, rows: Tensor, table: Tensor) -> RankOneStep:
        numbers = self.mask_id, self.num_classes, self.forbidden
        return RankOneStep(rows, table, self.pi, self.pi_cdf, *numbers)

    def _prior(self, end: Tensor) -> Tensor:
        """Return the divergence of ``Qbar`` with these coefficients from the stationary law."""
        keep, base, mask = end
        law, spread = self.stationary(), self._spread_vector(base, mask)
        others = divergence_terms(spread, law)
        here = divergence_terms(spread + keep, law)
        return here + (others.sum() - others)

    def _matrix(self, keep: Tensor, base: Tensor, mask: Tensor) -> Tensor:
        eye = torch.eye(self.num_classes, dtype=torch.float64, device=keep.device)
        return keep * eye + self._spread_vector(base, mask)

    def _spread_vector(self, base: Tensor, mask: Tensor) -> Tensor:
        vector = self.pi
        if vector is None:
            vector = base.new_full((self.num_classes,), 1 / self.num_classes)
        vector = base * vector
        if self.mask_id >= 0:
            vector[self.mask_id] += mask
        return vector


@loadable
class RankOneTransition(RankOneChain):
    """The chain ``Q_t = (1 - beta_t) I + beta_t 1 (g_t pi + (1 - g_t) e_mask)^T``.

    Made by :func:`~d3pm_fast.transitions.uniform`, :func:`~d3pm_fast.transitions.absorbing`,
    :func:`~d3pm_fast.transitions.marginal` and :func:`~d3pm_fast.transitions.mask_and_uniform`.

    Raises:
        ValueError: a class is entered in some step with a probability above 0 and below 1e-150.

    Attributes:
        step_table: float64 ``(T + 1, 7)``: row t is ``step_coefficients(t - 1, t)``; row 0 is NaN.
        product_table: float64 ``(T + 1, 3)``: row t is ``product_coefficients(t)``, row 0 the
            identity.
    """

    _TABLES = (
        "pi",
        "pi_cdf",
        "step_table",
        "product_table",
        "_log_keep",
        "_base_spread",
        "_betas",
        "_step_base",
    )

    def __init__(
        self,
        family: str,
        num_classes: int,
        betas: ArrayLike,
        pi: Tensor | None,
        base_share: float | Tensor,
        mask_id: int = -1,
        data_has_mask: bool = True,
    ) -> None:
        betas = check_probabilities("betas", betas)
        super().__init__(family, num_classes, len(betas), mask_id, data_has_mask)
        self._constant_share = base_share if isinstance(base_share, float) else None
        self.redraws = self._constant_share != 0

        first = betas.new_zeros(1)
        share = torch.as_tensor(base_share, dtype=torch.float64, device="cpu").expand(len(betas))
        self.needs_float64 = _needs_float64(betas, share, pi, num_classes)
        self._log_keep = torch.cat([first, torch.log1p(-betas).clamp(min=_LOG_ZERO).cumsum(0)])
        self._base_spread = torch.cat([first, _running_spread(betas, share)])
        self._betas = torch.cat([first, betas])
        self._step_base = torch.cat([first, betas * share])
        self.pi = pi
        self.pi_cdf = None if pi is None else running_sums(pi)

        times = torch.arange(self.num_steps + 1, device="cpu")
        self.step_table = self.step_coefficients((times - 1).clamp(min=0), times)
        self.step_table[0] = torch.nan
        self.product_table = self.product_coefficients(times)
        self._defined_by(self._betas, self._step_base, () if pi is None else pi)

    @property
    def device(self) -> torch.device:
        """Where the numbers are."""
        return self.step_table.device

    def product_coefficients(self, t: Tensor) -> Tensor:
        """Return ``(Abar_t, Wbar_t, Mbar_t)`` of ``Qbar_t``, float64 ``(*t.shape, 3)``.

        Args:
            t: integers in 0..T, any shape.
        """
        log_keep = self._log_keep[t]
        spread = -torch.expm1(log_keep)
        if self._constant_share is not None:
            base = spread * self._constant_share
        else:
            base = self._base_spread[t]
        return torch.stack([torch.exp(log_keep), base, (spread - base).clamp(min=0)], dim=-1)

    def step_coefficients(self, s: Tensor, t: Tensor) -> Tensor:
        """Return what the step ``x_t -> x_s`` needs, float64 ``(*t.shape, 7)``.

        Args:
            s: integers in 0..T, any shape.
            t: integers in 0..T, the shape of ``s``, nowhere below it.
        """
        logs = self._log_keep
        betas = self._betas[t]
        between, single = logs[t] - logs[s], s == t - 1
        # A difference of sums would round a small beta behind large ones.
        keep = torch.where(single, 1 - betas, torch.exp(between))
        spread = torch.where(single, betas, -torch.expm1(between))
        before = self.product_coefficients(s)
        if self._constant_share is not None:
            base = spread * self._constant_share
        else:
            after = self.product_coefficients(t)
            step_base = self._step_base
            skipped = (after[..., 1] - keep * before[..., 1]).clamp(min=0).minimum(spread)
            base = torch.where(single, step_base[t], skipped)
        step = torch.stack([keep, base, spread - base], dim=-1)
        return torch.cat([step, before, s.double().unsqueeze(-1)], dim=-1)

    def step_record(self, t: Tensor, s: Tensor | None = None) -> RankOneStep:
        """Return what operations are given of the steps ``x_t -> x_s``, s None for t - 1."""
        if s is None:
            return self._record(t, self.step_table)
        return self._steps_between(s, t, (s >= 0) & (s < t) & (t <= self.num_steps))

    def marginal_record(self, t: Tensor) -> RankOneMarginal:
        """Return what operations are given of ``q(x_t | x_0)``."""
        return RankOneMarginal(t, self.product_table, self.pi_cdf, self.mask_id, self.num_classes)

    def stationary(self) -> Tensor:
        """Return the distribution of x_T, whatever x_0 was, float64 ``(K,)``.

        For betas that leave ``Abar_T > 0`` it is the limit of drawing on with the last shares.
        """
        if self._constant_share is not None:
            share = self.product_table.new_tensor(self._constant_share)
        else:
            _, base, mask = self.product_table[-1]
            share = base / (base + mask)
        return self._spread_vector(share, 1 - share)

    def prior(self) -> Tensor:
        """Return ``KL(q(x_T | x_0) || stationary)`` in nats for each x_0, float64 ``(K,)``."""
        return self._prior(self.product_table[-1])

    def _q_matrix(self, t: int) -> Tensor:
        return self._matrix(*self.step_table[t, :3])

    def _q_bar_matrix(self, t: int) -> Tensor:
        return self._matrix(*self.product_table[t])


def _needs_float64(betas: Tensor, share: Tensor, pi: Tensor | None, num_classes: int) -> bool:
    """Return whether some class is entered too seldom for float32, in one step or in many.

    Raises:
        ValueError: in one step too seldom for float64.
    """
    rarest = 1 / num_classes if pi is None else float(pi[pi > 0].min())
    into_base, into_mask = betas * share * rarest, betas * (1 - share)
    redraws, masks = (betas > 0) & (share > 0), (betas > 0) & (share < 1)
    least = min(torch.cat([into_base[redraws], into_mask[masks]]).tolist(), default=1.0)
    if least < LEAST[torch.float64]:
        raise ValueError(
            f"betas must be 0, or enter a class with a probability of at least "
            f"{LEAST[torch.float64]:g}, as products of smaller ones are below float64's range; "
            f"got {least:.3g}: make such a beta (or such an entry of pi) 0"
        )
    # Of a class that no later step enters, what came into it before goes on to decay.
    for entries in (into_base, into_mask):
        current = 0.0
        for beta, entry in zip(betas.tolist(), entries.tolist(), strict=True):
            current = entry if entry > 0 else (1 - beta) * current
            least = min(least, current) if current > 0 else least
    return least < LEAST[torch.float32]


def _running_spread(betas: Tensor, share: Tensor) -> Tensor:
    """Return ``Wbar_t = a_t Wbar_{t-1} + w_t``, float64 ``(T,)``: a sum of positive terms."""
    running, total = 0.0, []
    for beta, part in zip(betas.tolist(), share.tolist(), strict=True):
        running = (1 - beta) * running + beta * part
        total.append(running)
    return torch.tensor(total, dtype=torch.float64, device="cpu")
