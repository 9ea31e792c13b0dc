"""Chains of a sparse rate matrix: nothing of K x K numbers is ever held.

``exp(tau R)`` is applied to rows as ``sum_n Poisson(n; speed tau) P^n`` with the jump matrix
``P = I + R / speed`` (uniformization; Jensen 1953). Neither P nor the weights are ever negative,
so nothing cancels, and what is left out is the known tail of the Poisson law.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .._compiled import cpu
from .._information import divergence_terms
from .base import running_sums
from .factored import least_factor
from .handles import RegisteredTransition

__all__ = ["SparseTransition"]

# Of every path from x_0 to x_t, what these leave out is below the digits of dtype as long as
# x_t is not less likely than what the kernels take on (kLeastReach in csrc/cpu/dense_target.h).
TAIL = {torch.float32: 1e-20, torch.float64: 1e-280}
# Where p is drawn from, and none of its entries counts by itself: in units of rounding.
ROUGH_TAIL = 1e-6
CHUNK = 64  # rows at a time where all K are needed


@dataclass(frozen=True)
class Columns:
    """A sparse matrix by columns, as ``SparsePolynomial`` in ``csrc/cpu/kernels.h`` reads it."""

    starts: Tensor
    sources: Tensor
    weights: dict[torch.dtype, Tensor]

    @classmethod
    def of(cls, matrix: Tensor) -> "Columns":
        """Take them from a coalesced sparse float64 matrix."""
        columns = matrix.t().coalesce()
        index, sources = columns.indices()
        values = columns.values()
        weights = {dtype: values.to(dtype).contiguous() for dtype in TAIL}
        return cls(_starts(index, len(matrix)), sources.int(), weights)


@dataclass(frozen=True)
class Polynomial:
    """``sum_n terms[n] P^n``, a form of ``Q_{s->t}`` as those of ``factored`` are."""

    dtype: torch.dtype
    jumps: Columns
    transposed: Columns
    terms: Tensor
    error: float
    is_centred = False

    def apply(self, v: Tensor, out: Tensor) -> None:
        """Write ``v Q``."""
        self._run(self.jumps, v, out)

    def apply_transposed(self, r: Tensor, out: Tensor) -> None:
        """Write ``r Q^T``."""
        self._run(self.transposed, r, out)

    def rows(self, classes: Tensor) -> Tensor:
        """Return the rows of Q of these classes, ``(N, K)``."""
        return self._of(self.jumps, classes)

    def columns(self, classes: Tensor) -> Tensor:
        """Return the columns of Q of these classes, as rows ``(N, K)``."""
        return self._of(self.transposed, classes)

    def _of(self, matrix: Columns, classes: Tensor) -> Tensor:
        start = torch.zeros(len(classes), len(matrix.starts) - 1, dtype=self.dtype)
        start[torch.arange(len(classes)), classes] = 1
        out = torch.empty_like(start)
        self._run(matrix, start, out)
        return out

    def _run(self, matrix: Columns, v: Tensor, out: Tensor) -> None:
        if cpu is None:
            return self._run_by_pytorch(matrix, v, out)
        cpu.sparse_polynomial(
            str(self.dtype),
            *v.shape,
            matrix.starts.data_ptr(),
            matrix.sources.data_ptr(),
            matrix.weights[self.dtype].data_ptr(),
            self.terms.data_ptr(),
            len(self.terms),
            v.data_ptr(),
            out.data_ptr(),
            torch.get_num_threads(),
        )

    def _run_by_pytorch(self, matrix: Columns, v: Tensor, out: Tensor) -> None:
        size = len(matrix.starts) - 1
        column = torch.arange(size).repeat_interleave(matrix.starts.diff())
        columns = torch.sparse_coo_tensor(
            torch.stack([column, matrix.sources.long()]),
            matrix.weights[self.dtype],
            (size, size),
            is_coalesced=True,
            check_invariants=True,
        )
        power = v
        torch.mul(v, float(self.terms[0]), out=out)
        for term in self.terms[1:].tolist():
            power = (columns @ power.T).T
            out.add_(power, alpha=term)


@dataclass(frozen=True)
class SparseStep:
    """What the kernels multiply with in one step ``x_t -> x_s``.

    Attributes:
        form: ``Qbar_s``.
        move: ``Q_{s->t}``.
    """

    form: Polynomial
    move: Polynomial

    def tables(self, x_t: Tensor | None, x0: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return ``Q_{s->t}[:, x_t]``, ``Qbar_s[x_0, :]`` if asked for, and spans, of tokens."""
        assert x_t is not None
        columns = self.move.columns(x_t)
        spans = torch.tensor([0, columns.shape[1]]).repeat(len(columns), 1)
        return columns, None if x0 is None else self.form.rows(x0), spans


class SparseTransition(RegisteredTransition):
    """``Qbar_t = exp(tau_t R)`` of a sparse rate matrix R, on the CPU.

    Memory is that of R and of a few rows of K numbers for each thread. A product of N rows takes
    about ``speed tau_t`` products with R, where speed is the fastest rate of leaving a class.

    Args:
        family: the name of the function that made it.
        rates: R off the diagonal, sparse COO, float64 ``(K, K)``, coalesced, positive.
        times: ``tau_1 .. tau_T``, float64, at least 0, never falling.
        stationary: float64 ``(K,)``.
        mask_id: the mask's class, or -1.
    """

    _TABLES = ("_stationary",)
    by_row = True
    memory_budget = 1 << 30  # of matrices on a GPU, which has no kernels for sparse ones

    def __init__(
        self, family: str, rates: Tensor, times: Tensor, stationary: Tensor, mask_id: int = -1
    ) -> None:
        num_classes = len(rates)
        super().__init__(family, num_classes, len(times), mask_id)
        self._stationary = stationary
        self._times = torch.cat([times.new_zeros(1), times]).tolist()
        leaving = torch.sparse.sum(rates, 1).to_dense()
        self.speed = float(leaving.max())
        staying = torch.arange(num_classes).repeat(2, 1)
        index = torch.cat([rates.indices(), staying], dim=1)
        values = torch.cat([rates.values(), self.speed - leaving]) / self.speed
        jumps = torch.sparse_coo_tensor(
            index, values, (num_classes, num_classes), check_invariants=True
        ).coalesce()
        self._jumps = Columns.of(jumps)
        self._transposed = Columns.of(jumps.t().coalesce())
        self._running = self._transposed.weights[torch.float64].clone()
        for row in self._running.split(self._transposed.starts.diff().tolist()):
            row.copy_(running_sums(row))
        self._register()

    @property
    def device(self) -> torch.device:
        """Where the numbers are handed out."""
        return self._stationary.device

    def stationary(self) -> Tensor:
        """Return the distribution that x_T tends to whatever x_0 was, float64 ``(K,)``."""
        return self._stationary

    def prior(self) -> Tensor:
        """Return ``KL(q(x_T | x_0) || stationary)`` in nats for each x_0, float64 ``(K,)``."""
        form = self._form(0, self.num_steps, torch.float64)
        chunks = torch.arange(self.num_classes).split(CHUNK)
        stationary = self._stationary.cpu()
        terms = (divergence_terms(form.rows(classes), stationary).sum(dim=1) for classes in chunks)
        return torch.cat(list(terms)).to(self.device)

    def product(self, s: int, t: int) -> Tensor:
        """Return ``Q_{s->t}``, float64 ``(K, K)``, for few classes; 0 <= s <= t <= T."""
        classes = torch.arange(self.num_classes)
        return self._form(s, t, torch.float64).rows(classes).to(self.device)

    def reach(self, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Return ``Qbar_t[x_0, x_t]``, float64, for integers of one shape; all are trusted."""
        found = torch.empty(t.numel(), dtype=torch.float64)
        starts, ends, times = (of.flatten().cpu() for of in (x0, x_t, t))
        for time in times.unique().tolist():
            form = self._form(0, time, torch.float64)
            for part in (times == time).nonzero().squeeze(1).split(CHUNK):
                rows = form.rows(starts[part])
                found[part] = rows.gather(1, ends[part].unsqueeze(1)).squeeze(1)
        return found.view(t.shape).to(t.device)

    def step(self, s: int, t: int, dtype: torch.dtype, *, rough: bool = False) -> SparseStep:
        """Return the step from t to s for a calculation in float32 or float64.

        A rough one is for p as a whole. What its column leaves out is a tail of the share that
        x_t keeps in it, which the error of the form then stands for too.
        """
        if not rough:
            return SparseStep(self._form(0, s, dtype), self._form(s, t, dtype))
        tail = ROUGH_TAIL * torch.finfo(dtype).eps
        least = tail * math.exp(-self.speed * (self._times[t] - self._times[s]))
        form = self._form(0, s, dtype, tail)
        move = self._form(s, t, dtype, max(least, TAIL[torch.float64]))
        return SparseStep(replace(form, error=form.error + tail), move)

    def log_columns(self, s: int, t: int, x_t: Tensor) -> Tensor:
        """Return ``log Q_{s->t}[:, x_t]`` for each token, float64 ``(N, K)``."""
        return self._form(s, t, torch.float64).columns(x_t).log_()

    def log_rows(self, s: int, x0: Tensor) -> Tensor:
        """Return ``log Qbar_s[x_0, :]`` for each token, float64 ``(N, K)``."""
        return self._form(0, s, torch.float64).rows(x0).log_()

    def log_tilt(self, t: int, dtype: torch.dtype, x_t: Tensor) -> Tensor:
        """Return ``-log Qbar_t[:, x_t]`` for each token, -inf where the chain never leads to x_t.

        ``(N, K)``.
        """
        reach = self.log_columns(0, t, x_t)
        return -reach.where(reach > -torch.inf, torch.inf).to(dtype)

    def jumps_cdf(self, t: int) -> Tensor:
        """Return the running sums of the law of the number of jumps up to t, float64."""
        return running_sums(self._form(0, t, torch.float64).terms)

    def jump_rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the rows of P: where each starts, the classes it leads to, their running sums."""
        return self._transposed.starts, self._transposed.sources, self._running

    def _form(self, s: int, t: int, dtype: torch.dtype, tail: float | None = None) -> Polynomial:
        tail = TAIL[dtype] if tail is None else tail
        terms = poisson(self.speed * (self._times[t] - self._times[s]), tail)
        error = tail + (self.num_classes + 1) * least_factor(dtype)
        return Polynomial(dtype, self._jumps, self._transposed, terms, error)

    def _q_matrix(self, t: int) -> Tensor:
        return self.product(t - 1, t)

    def _q_bar_matrix(self, t: int) -> Tensor:
        return self.product(0, t)


def poisson(mean: float, tail: float) -> Tensor:
    """Return the Poisson law of a mean up to where less than ``tail`` is left, float64."""
    if mean == 0:
        return torch.ones(1, dtype=torch.float64)
    digits = -math.log(tail)
    most = math.ceil(mean + math.sqrt(2 * mean * digits) + digits) + 2  # Chernoff
    n = torch.arange(most, dtype=torch.float64)
    law = (n * math.log(mean) - mean - torch.lgamma(n + 1)).exp()
    left = law.flip(0).cumsum(0).flip(0)
    law = law[left >= tail]
    return law / law.sum()


def _starts(index: Tensor, size: int) -> Tensor:
    counts = torch.bincount(index, minlength=size)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])
