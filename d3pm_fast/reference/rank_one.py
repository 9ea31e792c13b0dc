"""One reverse step ``x_t -> x_s`` of a rank-one chain, as log-matrices' rows and columns.

Words as in the paper: ``Q`` is ``Q_{s->t}`` (``Q_t`` for s = t - 1), ``Qbar`` is ``Qbar_s``.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..chains.structures import RankOneStep
from ..records import Model
from .draws import NONE, draw_base, draw_row
from .logspace import at, log_add_exp, spread, whole, without


@dataclass
class RankOneLogs:
    """The coefficients of each token's step, float64 ``(B, *S, 1)``, and the chain's vector."""

    keep: Tensor
    base: Tensor
    mask: Tensor
    bar_keep: Tensor
    bar_base: Tensor
    bar_mask: Tensor
    target_time: Tensor
    log_vector: Tensor
    pi_cdf: Tensor | None
    mask_id: int
    forbidden: int
    dtype: torch.dtype

    @classmethod
    def of(cls, step: RankOneStep, shape: tuple[int, ...], dtype: torch.dtype) -> "RankOneLogs":
        """Look up each token's coefficients; a row outside the table reads NaN."""
        *tokens, _ = shape
        rows, table, num_classes = step.rows, step.table, step.num_classes
        inside = (rows >= 0) & (rows < len(table))
        found = table[rows.where(inside, 0)].where(inside.unsqueeze(-1), torch.nan)
        pi = step.pi
        vector = table.new_full((num_classes,), 1 / num_classes) if pi is None else pi
        a, w, m, bar_a, bar_w, bar_m, s = (
            spread(column, tuple(tokens)).unsqueeze(-1) for column in found.unbind(-1)
        )
        vectors = vector.log(), step.pi_cdf, step.mask_id, step.forbidden
        return cls(a, w, m, bar_a, bar_w, bar_m, s, *vectors, dtype)

    def allowed(self, logits: Tensor) -> Tensor:
        """Return logits of all classes, -inf for one that data never hold."""
        if self.forbidden < 0:
            return logits
        return without(whole(logits, self.log_vector.shape[-1]), self.forbidden)

    def log_q_column(self, x_t: Tensor) -> Tensor:
        """Return ``log Q[j, x_t]`` for every j, ``(B, *S, K)``."""
        return self._column(self.keep, self.base, self.mask, x_t).to(self.dtype)

    def log_q_bar_t_column(self, x_t: Tensor) -> Tensor:
        """Return ``log Qbar_t[i, x_t]`` for every i, ``(B, *S, K)``."""
        return self._log_reach(x_t).to(self.dtype)

    def log_q_bar_spread(self) -> Tensor:
        """Return ``log ubar_j``, the rank-one part of ``Qbar_s``, ``(B, *S, K)``."""
        return self._log_spread(self.bar_base, self.bar_mask).to(self.dtype)

    def log_q_spread(self) -> Tensor:
        """Return ``log u_j``, the rank-one part of ``Q``, ``(B, *S, K)``."""
        return self._log_spread(self.base, self.mask).to(self.dtype)

    def is_held(self) -> Tensor:
        """Return whether data, or else ``Qbar_s``, can hold a class, bool ``(B, *S, K)``."""
        classes = torch.arange(self.log_vector.shape[-1], device=self.log_vector.device)
        return (classes != self.forbidden) | (self.log_q_bar_spread() > -torch.inf)

    def log_q_bar_row(self, x0: Tensor) -> Tensor:
        """Return ``log Qbar_s[x_0, j]`` for every j, ``(B, *S, K)``."""
        spread = self._log_spread(self.bar_base, self.bar_mask)
        here = torch.logaddexp(self.bar_keep.log(), at(spread, x0))
        return spread.scatter(-1, x0.unsqueeze(-1), here).to(self.dtype)

    def log_predicted(self, log_x0: Tensor) -> Tensor:
        """Return ``log f``, ``f = s Qbar_s``, for a predicted ``log s``, ``(B, *S, K)``."""
        return log_add_exp(self.bar_keep.log().to(self.dtype) + log_x0, self.log_q_bar_spread())

    def without_step(self) -> "RankOneLogs":
        """Return the same where Q, the rates of a density, has had no time: s = t."""
        nothing = torch.zeros_like(self.keep)
        return replace(self, keep=nothing + 1, base=nothing, mask=nothing)

    def tilt(self, logits: Tensor, x_t: Tensor) -> Tensor:
        """Return the log of ``s_i / Qbar_t[i, x_t]``, normalized over i, ``(B, *S, K)``.

        With it in place of s, the softmax of the logits, the joint reverse step is the posterior
        mean ``sum_i s_i q(. | x_t, x_0 = i)``. Where some i cannot lead to x_t, none but x_t
        itself can, the step stays at x_t whatever s is, and that of s is returned.
        """
        log_reach = self._log_reach(x_t)
        reachable = (log_reach > -torch.inf).all(dim=-1, keepdim=True)
        log_s = torch.log_softmax(logits.double(), dim=-1)
        tilted = torch.log_softmax(log_s - log_reach.where(reachable, 0), dim=-1)
        return tilted.to(logits.dtype)

    def draw(
        self,
        log_x0: Tensor,
        x_t: Tensor,
        model: Model,
        uniforms: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Return x_s drawn as a mixture, int64 ``(B, *S)``.

        With ``u = u[x_t]``, ``p(j) Z = u A s_j + u ubar_j + a f[x_t] [j = x_t]``: one number
        chooses among the model (mass ``u A``), pi (``u W``), the mask (``u M``) and
        staying, the other draws the class from s or from pi. Since ``Z >= u + a ubar[x_t]``,
        some tokens stay whatever s is; of the others, ``NONE`` comes where there is no s.
        """
        first = (self.target_time == 0) & model.direct
        log_s = log_x0.where(first, self.tilt(log_x0, x_t)) if model.posterior_mean else log_x0
        here = at(self.log_predicted(log_s), x_t).exp().squeeze(-1)
        of_model = draw_row(log_s.exp(), uniforms[1])
        has_law = ~log_x0.isnan().any(dim=-1)
        return self.mixed(here, of_model, has_law, x_t, model, uniforms)

    def mixed(
        self,
        here: Tensor,
        of_model: Tensor,
        has_law: Tensor,
        x_t: Tensor,
        model: Model,
        uniforms: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Return x_s of the mixture, given f[x_t], the class drawn from s, and if there is an s."""
        choice, draw = uniforms
        first = (self.target_time == 0).squeeze(-1) & model.direct
        is_mask = (x_t == self.mask_id).double()
        vector = self.log_vector.exp()[x_t]
        spread = self.base.squeeze(-1) * vector + self.mask.squeeze(-1) * is_mask

        predicted, stationary, mask = (
            (spread * part.squeeze(-1)) for part in (self.bar_keep, self.bar_base, self.bar_mask)
        )
        bar_spread = self.bar_base.squeeze(-1) * vector + self.bar_mask.squeeze(-1) * is_mask
        least = choice * (spread + self.keep.squeeze(-1) * bar_spread)
        only_mask = (self.bar_base.squeeze(-1) == 0) & (x_t == self.mask_id)
        stays = (least >= predicted + stationary + mask) | ((least >= predicted) & only_mask)
        undefined = ~has_law & (~stays | first)

        threshold = choice * (spread + self.keep.squeeze(-1) * here)
        from_model = (threshold < predicted) | first
        from_base = threshold < predicted + stationary
        from_mask = threshold < predicted + stationary + mask

        fallback = x_t.where(~from_mask | (self.mask_id < 0), self.mask_id)
        redrawn = draw_base(draw, self.pi_cdf, len(self.log_vector))
        drawn = of_model.where(from_model, redrawn.where(from_base, fallback))
        return drawn.where(~undefined, NONE)

    def _log_reach(self, x_t: Tensor) -> Tensor:
        """Return the column of ``Qbar_t = Qbar_s Q``, float64."""
        return self._column(
            self.keep * self.bar_keep,
            self.keep * self.bar_base + self.base,
            self.keep * self.bar_mask + self.mask,
            x_t,
        )

    def _column(self, keep: Tensor, base: Tensor, mask: Tensor, x_t: Tensor) -> Tensor:
        index = x_t.unsqueeze(-1)
        spread = base * self.log_vector.exp()[index] + mask * (index == self.mask_id)
        column = spread.log().expand(*x_t.shape, len(self.log_vector))
        return column.scatter(-1, index, (keep + spread).log())

    def _log_spread(self, base: Tensor, mask: Tensor) -> Tensor:
        spread = base.log() + self.log_vector
        if self.mask_id < 0:
            return spread
        here = torch.logaddexp(spread[..., self.mask_id], mask.log().squeeze(-1))
        spread[..., self.mask_id] = here
        return spread
