"""Transitions without a structure that closes under products: matrices, made when asked for."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._information import divergence_terms
from .._loadable import loadable
from .base import running_sums
from .factored import Form, best_form
from .matrix import MatrixTransition
from .products import Matrices
from .structures import DENSE, DenseMarginal

__all__ = ["DenseStep", "DenseTransition"]

# What it leaves out of q is below the digits of dtype, as long as x_t is not less likely than
# what the kernels take on (kLeastReach in csrc/cpu/dense_target.h).
LEAST_COLUMN = {torch.float32: 1e-30, torch.float64: 1e-290}


@dataclass(frozen=True)
class DenseStep:
    """What the kernels multiply with in one step ``x_t -> x_s``, rounded from float64.

    Attributes:
        columns: ``Q_{s->t}[:, x_t]`` in row x_t, ``(K, K)``; nothing below ``LEAST_COLUMN``.
        spans: where each of them is not zero, from its first class to its last and one, int64
            ``(K, 2)``.
        rows: ``Qbar_s[x_0, :]`` in row x_0, ``(K, K)``, in the dtype of the form.
        form: ``Qbar_s`` as rows are multiplied by it.
    """

    columns: Tensor
    spans: Tensor
    rows: Tensor
    form: Form

    def tables(self, *_tokens: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return columns, rows and spans; those of all classes, whatever the tokens are."""
        return self.columns, self.rows, self.spans

    @property
    def num_bytes(self) -> int:
        """What the step holds."""
        return self.columns.nbytes + self.spans.nbytes + self.rows.nbytes + self.form.num_bytes


@loadable
class DenseTransition(MatrixTransition):
    """A chain of arbitrary matrices; products are made on demand and kept within a budget.

    Args:
        family: the name of the function that made it.
        matrices: those of its steps, on the CPU; their cache serves all that is made of them.
        stationary: float64 ``(K,)``.
        mask_id: the mask's class, or -1.
        data_has_mask: whether data may hold it.
    """

    structure = DENSE.name
    by_row = False

    def __init__(
        self,
        family: str,
        matrices: Matrices,
        stationary: Tensor,
        mask_id: int = -1,
        data_has_mask: bool = True,
    ) -> None:
        super().__init__(family, matrices.num_classes, matrices.num_steps, mask_id, data_has_mask)
        self._matrices = matrices
        self._stationary = stationary
        self.memory_budget = matrices.memory_budget
        self._defined_by(matrices.definition)
        self._register()

    def marginal_record(self, t: Tensor) -> DenseMarginal:
        """Return what operations are given of ``q(x_t | x_0)``."""
        return DenseMarginal(t, self.handle)

    def prior(self) -> Tensor:
        """Return ``KL(q(x_T | x_0) || stationary)`` in nats for each x_0, float64 ``(K,)``."""
        return divergence_terms(self.product(0, self.last_time), self._stationary).sum(dim=1)

    def product(self, s: float, t: float) -> Tensor:
        """Return ``Q_{s->t} = Q_{s+1} ... Q_t``, float64 ``(K, K)``, 0 <= s <= t <= T."""
        if s == t:
            return torch.eye(self.num_classes, dtype=torch.float64, device=self.device)
        return self._matrices.between(s, t).to(self.device)

    def log_product(self, s: float, t: float) -> Tensor:
        """Return ``log Q_{s->t}``, float64 ``(K, K)``, also of entries below float64's range."""
        if s == t:
            return self.product(s, t).log()
        return self._matrices.log_between(s, t).to(self.device)

    def log_reach(self, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Return ``log Qbar_t[x_0, x_t]``, float64, for integers of one shape, all trusted."""
        found = torch.empty(t.shape, dtype=torch.float64, device=t.device)
        for time in t.unique().tolist():
            here = t == time
            found[here] = self.log_product(0, time)[x0[here], x_t[here]]
        return found

    def step(self, s: float, t: float, dtype: torch.dtype, *, rough: bool = False) -> DenseStep:
        """Return the step from t to s for a calculation in float32 or float64.

        A rough one would do where p is drawn from; here it is no cheaper.
        """

        def make() -> DenseStep:
            q, q_bar = self.step_matrix(s, t), self.product(0, s)
            least = LEAST_COLUMN[dtype] * (q.amax(0) if s == t else 1)  # of rates, of the largest
            columns = q.where(q >= least, 0).T.to(dtype).contiguous()
            form = self._form(q_bar, dtype)
            return DenseStep(columns, spans(columns), q_bar.to(form.dtype), form)

        found: DenseStep = self._remember(("step", s, t, dtype), make, lambda step: step.num_bytes)
        return found

    def _form(self, q_bar: Tensor, dtype: torch.dtype) -> Form:
        return best_form(q_bar, dtype)

    def log_columns(self, s: float, t: float, *_tokens: Tensor | None) -> Tensor:
        """Return ``log Q_{s->t}[:, x_t]`` in row x_t, float64 ``(K, K)``."""
        return self._table("log columns", lambda: self.log_product(s, t).T.contiguous(), s, t)

    def log_rows(self, s: float, *_tokens: Tensor | None) -> Tensor:
        """Return ``log Qbar_s``, float64 ``(K, K)``."""
        return self._table("log rows", lambda: self.log_product(0, s), s)

    def log_tilt(self, t: float, *_tokens: Tensor | None) -> Tensor:
        """Return ``-log Qbar_t[:, x_t]`` in row x_t, -inf where the chain never leads to x_t.

        float64 ``(K, K)``.
        """

        def make() -> Tensor:
            log_reach = self.log_product(0, t).T
            return -log_reach.where(log_reach > -torch.inf, torch.inf).contiguous()

        return self._table("log tilt", make, t)

    def cdf(self, t: float) -> Tensor:
        """Return the running sums of the rows of ``Qbar_t``, float64 ``(K, K)``.

        They are 1 from each row's last possible class on: no number below 1 can pass it.
        """
        return self._table("cdf", lambda: running_sums(self.product(0, t)), t)

    def _table(self, name: str, make: Callable[[], Tensor], *of: Any) -> Tensor:
        found: Tensor = self._remember((name, *of), make, lambda table: table.nbytes)
        return found

    def _remember(
        self, key: tuple[Any, ...], make: Callable[[], Any], size: Callable[[Any], int]
    ) -> Any:
        return self._matrices.cache.get((*key, self.device), make, size)


def spans(rows: Tensor) -> Tensor:
    """Return the first class of each row that is not zero, and the last plus one, ``(K, 2)``."""
    possible = rows > 0
    first = possible.long().argmax(dim=1)
    last = rows.shape[1] - possible.flip(1).long().argmax(dim=1)
    return torch.stack([first, last.where(possible.any(dim=1), 0)], dim=1)
