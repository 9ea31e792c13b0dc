"""Chains that jump by a sparse matrix P: nothing of K x K numbers is ever held.

``Q_{s->t} = sum_n terms_n P^n``, where ``terms`` is the law of the number of jumps.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .._information import divergence_terms
from .._loadable import loadable
from .base import running_sums
from .cache import MEMORY_BUDGET, ByteCache
from .factored import least_factor
from .jump_laws import JumpLaw, Poisson
from .jumps import TAIL, Columns, Polynomial, hops, log_rows
from .matrix import MatrixTransition
from .structures import SPARSE, SparseMarginal

__all__ = ["SparseTransition", "sparse_rate_chain"]

# Where p is drawn from, and none of its entries counts by itself: in units of rounding.
ROUGH_TAIL = 1e-6
LEAST = 1e-270  # an entry above it has lost nothing to the tail of float64
CHUNK = 64  # rows at a time where all K are needed


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
        spans = torch.tensor([0, columns.shape[1]], device="cpu").repeat(len(columns), 1)
        return columns, None if x0 is None else self.form.rows(x0), spans


@loadable
class SparseTransition(MatrixTransition):
    """A chain of jumps by a sparse matrix, on the CPU.

    Memory is that of P and of a few rows of K numbers for each thread. A product of N rows takes
    as many products with P as there may be jumps.

    Args:
        family: the name of the function that made it.
        jumps: P, sparse COO, float64 ``(K, K)``, coalesced, rows summing to 1.
        law: of the number of jumps.
        stationary: float64 ``(K,)``.
        mask_id: the mask's class, or -1.
    """

    structure = SPARSE.name
    by_row = True
    memory_budget = MEMORY_BUDGET  # of matrices on a GPU, which has no kernels for sparse ones

    def __init__(
        self, family: str, jumps: Tensor, law: JumpLaw, stationary: Tensor, mask_id: int = -1
    ) -> None:
        super().__init__(family, len(jumps), law.num_steps, mask_id)
        self._stationary = stationary
        self._law = law
        self._defined_by(law.definition, jumps.indices(), jumps.values())
        self._jumps = Columns.of(jumps)
        self._transposed = Columns.of(jumps.t().coalesce())
        self._running = self._transposed.weights[torch.float64].clone()
        for row in self._running.split(self._transposed.starts.diff().tolist()):
            row.copy_(running_sums(row))
        self._cache = ByteCache(1 << 26)  # for laws and for the prior
        self._register()

    def marginal_record(self, t: Tensor) -> SparseMarginal:
        """Return what operations are given of ``q(x_t | x_0)``."""
        return SparseMarginal(t, self.handle)

    def prior(self) -> Tensor:
        """Return ``KL(q(x_T | x_0) || stationary)`` in nats for each x_0, float64 ``(K,)``."""

        def make() -> Tensor:
            form = self._form(0, self.num_steps, torch.float64)
            stationary = self._stationary.cpu()
            chunks = torch.arange(self.num_classes, device="cpu").split(CHUNK)
            terms = (divergence_terms(form.rows(chunk), stationary).sum(dim=1) for chunk in chunks)
            return torch.cat(list(terms))

        return self._remember("prior", make).to(self.device)

    def product(self, s: int, t: int) -> Tensor:
        """Return ``Q_{s->t}``, float64 ``(K, K)``, for few classes; 0 <= s <= t <= T."""
        classes = torch.arange(self.num_classes, device="cpu")
        return self._form(s, t, torch.float64).rows(classes).to(self.device)

    def log_product(self, s: int, t: int) -> Tensor:
        """Return ``log Q_{s->t}``, float64 ``(K, K)``, for few classes; 0 <= s <= t <= T."""
        classes = torch.arange(self.num_classes, device="cpu")
        return self._logs(self._jumps, s, t, classes).to(self.device)

    def log_reach(self, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Return ``log Qbar_t[x_0, x_t]``, float64, for integers of one shape, all trusted."""
        found = torch.empty(t.numel(), dtype=torch.float64, device="cpu")
        starts, ends, times = (of.flatten().cpu() for of in (x0, x_t, t))
        for time in times.unique().tolist():
            for part in (times == time).nonzero().squeeze(1).split(CHUNK):
                rows = self._logs(self._jumps, 0, time, starts[part])
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
        least = tail * float(self._law.log_terms(s, t, 0).exp())
        form = self._form(0, s, dtype, tail)
        move = self._form(s, t, dtype, max(least, TAIL[torch.float64]))
        return SparseStep(replace(form, error=form.error + tail), move)

    def log_columns(self, s: int, t: int, x_t: Tensor) -> Tensor:
        """Return ``log Q_{s->t}[:, x_t]`` for each token, float64 ``(N, K)``."""
        return self._logs(self._transposed, s, t, x_t)

    def log_rows(self, s: int, x0: Tensor) -> Tensor:
        """Return ``log Qbar_s[x_0, :]`` for each token, float64 ``(N, K)``."""
        return self._logs(self._jumps, 0, s, x0)

    def log_tilt(self, t: int, x_t: Tensor) -> Tensor:
        """Return ``-log Qbar_t[:, x_t]`` for each token, -inf where the chain never leads to x_t.

        float64 ``(N, K)``.
        """
        reach = self.log_columns(0, t, x_t)
        return -reach.where(reach > -torch.inf, torch.inf)

    def jumps_cdf(self, t: int) -> Tensor:
        """Return the running sums of the law of the number of jumps up to t, float64."""
        return running_sums(self._form(0, t, torch.float64).terms)

    def jump_rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the rows of P: where each starts, the classes it leads to, their running sums."""
        return self._transposed.starts, self._transposed.sources, self._running

    def _form(self, s: int, t: int, dtype: torch.dtype, tail: float | None = None) -> Polynomial:
        tail = TAIL[dtype] if tail is None else tail
        terms = self._remember("terms", lambda: self._law.terms(s, t, tail), s, t, tail)
        error = tail + (self.num_classes + 1) * least_factor(dtype)
        return Polynomial(dtype, self._jumps, self._transposed, terms, error)

    def _logs(self, matrix: Columns, s: int, t: int, classes: Tensor) -> Tensor:
        """Return ``log sum_n terms_n P^n`` in rows of P or of its transpose, ``(N, K)``."""
        rows = self._form(s, t, torch.float64).of(matrix, classes)
        logs, small = rows.log(), rows < LEAST
        if not bool(small.any()):
            return logs
        distance = hops(matrix, classes)
        small &= distance >= 0
        doubted = small.any(dim=1)
        if bool(doubted.any()):
            # Beyond the jumps that lead to a class the terms fall as a law of jumps does.
            most = int(distance[doubted].max()) + len(self._form(s, t, torch.float32).terms)
            exact = log_rows(matrix, self._law.log_terms(s, t, most), classes[doubted])
            logs[doubted] = logs[doubted].where(~small[doubted], exact)
        return logs.where(small | (rows > 0), -torch.inf)

    def _remember(self, name: str, make: Callable[[], Tensor], *of: Any) -> Tensor:
        found: Tensor = self._cache.get((name, *of), make, lambda made: made.nbytes)
        return found


def sparse_rate_chain(
    family: str, rates: Tensor, times: Tensor, stationary: Tensor, mask_id: int = -1
) -> SparseTransition:
    """Return the chain ``Qbar_t = exp(tau_t R)`` of a sparse rate matrix, by uniformization.

    Args:
        family: the name of the function that made it.
        rates: R off the diagonal, sparse COO, float64 ``(K, K)``, coalesced, positive.
        times: ``tau_1 .. tau_T``, float64, at least 0, never falling.
        stationary: float64 ``(K,)``.
        mask_id: the mask's class, or -1.
    """
    leaving = torch.sparse.sum(rates, 1).to_dense()
    speed = float(leaving.max())
    staying = torch.arange(len(rates), device="cpu").repeat(2, 1)
    index = torch.cat([rates.indices(), staying], dim=1)
    values = torch.cat([rates.values(), speed - leaving]) / speed
    jumps = torch.sparse_coo_tensor(
        index, values, rates.shape, check_invariants=True, device="cpu"
    ).coalesce()
    return SparseTransition(family, jumps, Poisson(speed, times), stationary, mask_id)
