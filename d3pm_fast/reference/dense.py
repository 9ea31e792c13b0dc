"""One reverse step ``x_t -> x_s`` of a dense chain, as log-matrices' rows and columns."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..chains.structures import MatrixStep
from .logspace import log_sum_exp, spread


class MatrixTables(NamedTuple):
    """The log-matrices ``(U, K, K)`` of the U different steps, and what else a step reads.

    Attributes:
        log_q: of ``Q_{s->t}``.
        log_q_bar: of ``Qbar_s``.
        log_q_bar_t: of ``Qbar_t``.
        times: float64 ``(U,)``, s; NaN for a step that does not exist, as all of its logs.
        which: of t's shape, the step of each.
    """

    log_q: Tensor
    log_q_bar: Tensor
    log_q_bar_t: Tensor
    times: Tensor
    which: Tensor


def look_up(step: MatrixStep) -> MatrixTables:
    """Return the log-matrices of steps."""
    chain, t = step.chain, step.t
    s = t - 1 if step.s is None else step.s
    pairs, which = torch.stack([s, t]).flatten(1).unique(dim=1, return_inverse=True)
    k, count = chain.num_classes, pairs.shape[1]
    matrices = torch.full((count, 3, k, k), torch.nan, dtype=torch.float64, device="cpu")
    times = torch.full((count,), torch.nan, dtype=torch.float64, device="cpu")
    for u, pair in enumerate(pairs.T.cpu()):
        a, b = (time.item() for time in pair)  # PyTorch 2.4 makes no list within a transform
        if chain.exists(a, b):
            times[u] = a
            matrices[u, 0] = chain.log_step_matrix(a, b)
            matrices[u, 1], matrices[u, 2] = chain.log_product(0, a), chain.log_product(0, b)
    log_q, log_q_bar, log_q_bar_t = matrices.to(t.device).unbind(1)
    return MatrixTables(log_q, log_q_bar, log_q_bar_t, times.to(t.device), which.view(t.shape))


@dataclass
class MatrixLogs:
    """The log-matrices ``(U, K, K)`` of the U different steps, and each token's, ``(B, *S)``."""

    log_q: Tensor
    log_q_bar: Tensor
    log_q_bar_t: Tensor
    which: Tensor
    target_time: Tensor
    dtype: torch.dtype

    @classmethod
    def of(cls, found: MatrixTables, shape: tuple[int, ...], dtype: torch.dtype) -> "MatrixLogs":
        """Return the logs of each token's step."""
        of_tokens = spread(found.which, shape[:-1])
        time = found.times[of_tokens].unsqueeze(-1)
        return cls(found.log_q, found.log_q_bar, found.log_q_bar_t, of_tokens, time, dtype)

    @property
    def forbidden(self) -> int:
        """No class: data may hold all."""
        return -1

    def allowed(self, logits: Tensor) -> Tensor:
        """Return the logits: data may hold all classes."""
        return logits

    def log_q_column(self, x_t: Tensor) -> Tensor:
        """Return ``log Q[j, x_t]`` for every j, ``(B, *S, K)``."""
        return self.log_q.mT[self.which, x_t].to(self.dtype)

    def log_q_bar_t_column(self, x_t: Tensor) -> Tensor:
        """Return ``log Qbar_t[i, x_t]`` for every i, ``(B, *S, K)``."""
        return self.log_q_bar_t.mT[self.which, x_t].to(self.dtype)

    def log_q_bar_row(self, x0: Tensor) -> Tensor:
        """Return ``log Qbar_s[x_0, j]`` for every j, ``(B, *S, K)``."""
        return self.log_q_bar[self.which, x0].to(self.dtype)

    def log_predicted(self, log_x0: Tensor) -> Tensor:
        """Return ``log f``, ``f = s Qbar_s``, for a predicted ``log s``, ``(B, *S, K)``."""
        log_f = log_x0  # all of it is replaced; of an empty batch there is nothing to replace
        for u, log_q_bar in enumerate(self.log_q_bar):
            here = self.which == u
            terms = log_x0[here].unsqueeze(-1) + log_q_bar.to(self.dtype)
            log_f = log_f.index_put((here,), log_sum_exp(terms, dim=-2))
        return log_f

    def without_step(self) -> "MatrixLogs":
        """Return the same where Q, the rates of a density, has had no time: s = t."""
        return self

    def tilt(self, logits: Tensor, x_t: Tensor) -> Tensor:
        """Return the log of ``s_i / Qbar_t[i, x_t]``, normalized over i, ``(B, *S, K)``.

        A class that cannot lead to x_t is left out, before anything is rounded at its level;
        where s, the softmax of the logits, allows no other, that of s is returned.
        """
        log_reach = self.log_q_bar_t.mT[self.which, x_t]
        is_number = logits < torch.inf  # NaN and inf of any class stay
        possible = ((log_reach > -torch.inf) | ~is_number) & (logits != -torch.inf)
        none = ~possible.any(dim=-1, keepdim=True)
        kept = logits.double().where(possible, -torch.inf).where(~none, 0)
        level = kept.detach().amax(dim=-1, keepdim=True)
        tilted = torch.log_softmax(kept - level - log_reach.where(possible, 0), dim=-1)
        return torch.log_softmax(logits, dim=-1).where(none, tilted.to(logits.dtype))
