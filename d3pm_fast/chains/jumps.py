"""Powers of a sparse matrix P of jumps: ``sum_n terms_n P^n`` applied to rows, and its logarithm.

Neither P nor the terms are ever negative, so nothing cancels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .._compiled import cpu
from .._loadable import loadable

__all__ = ["TAIL", "Columns", "Polynomial", "hops", "log_rows"]

# Of every path from x_0 to x_t, what these leave out is below the digits of dtype as long as
# x_t is not less likely than what the kernels take on (kLeastReach in csrc/cpu/dense_target.h).
TAIL = {torch.float32: 1e-20, torch.float64: 1e-280}
_CHUNK = 1 << 21  # numbers at a time: 16 MiB of float64


@loadable
@dataclass(frozen=True)
class Columns:
    """A sparse matrix by columns; ``SparsePolynomial`` in ``csrc/cpu/dense_calls.h`` reads it."""

    starts: Tensor
    sources: Tensor
    weights: dict[torch.dtype, Tensor]

    @property
    def targets(self) -> Tensor:
        """Return the column of each entry, int64."""
        columns = torch.arange(len(self.starts) - 1, device="cpu")
        return columns.repeat_interleave(self.starts.diff())

    def transposed(self, dtype: torch.dtype) -> Tensor:
        """Return the matrix's transpose, sparse."""
        size = len(self.starts) - 1
        index = torch.stack([self.targets, self.sources.long()])
        return torch.sparse_coo_tensor(
            index,
            self.weights[dtype],
            (size, size),
            is_coalesced=True,
            check_invariants=True,
            device="cpu",
        )

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
        return self.of(self.jumps, classes)

    def columns(self, classes: Tensor) -> Tensor:
        """Return the columns of Q of these classes, as rows ``(N, K)``."""
        return self.of(self.transposed, classes)

    def of(self, matrix: Columns, classes: Tensor) -> Tensor:
        """Return rows of the polynomial of a matrix, P or its transpose, ``(N, K)``."""
        start = torch.zeros(len(classes), len(matrix.starts) - 1, dtype=self.dtype, device="cpu")
        start[torch.arange(len(classes), device="cpu"), classes] = 1
        out = torch.empty_like(start)
        self._run(matrix, start, out)
        return out

    def _run(self, matrix: Columns, v: Tensor, out: Tensor) -> None:
        if cpu is None:
            return self._run_by_pytorch(matrix, v, out)
        starts, sources, weights = matrix.starts, matrix.sources, matrix.weights[self.dtype]
        at = starts.data_ptr(), sources.data_ptr(), weights.data_ptr()
        terms = self.terms.data_ptr(), len(self.terms)
        call = *v.shape, *at, *terms, v.data_ptr(), out.data_ptr()
        cpu.sparse_polynomial(str(self.dtype), call, torch.get_num_threads())

    def _run_by_pytorch(self, matrix: Columns, v: Tensor, out: Tensor) -> None:
        columns = matrix.transposed(self.dtype)
        power = v
        torch.mul(v, float(self.terms[0]), out=out)
        for term in self.terms[1:].tolist():
            power = (columns @ power.T).T
            out.add_(power, alpha=term)


def hops(matrix: Columns, classes: Tensor) -> Tensor:
    """Return how many jumps lead from these classes to every class, int64 ``(N, K)``; -1: none."""
    columns = matrix.transposed(torch.float32)
    reached = torch.nn.functional.one_hot(classes, len(matrix.starts) - 1).float()
    distance = torch.full_like(reached, -1, dtype=torch.int64)
    number, new = 0, reached > 0
    while bool(new.any()):
        distance[new] = number
        number, reached = number + 1, (distance >= 0).float()
        new = ((columns @ reached.T).T > 0) & (distance < 0)
    return distance


def log_rows(matrix: Columns, log_terms: Tensor, classes: Tensor) -> Tensor:
    """Return ``log sum_n terms_n P^n`` in the rows of these classes, float64 ``(N, K)``."""
    log_weights = matrix.weights[torch.float64].log()
    sources, targets = matrix.sources.long(), matrix.targets
    parts = []
    for part in classes.split(max(_CHUNK // len(sources), 1)):
        power = log_weights.new_full((len(part), len(matrix.starts) - 1), -torch.inf)
        power[torch.arange(len(part), device="cpu"), part] = 0
        total = power + log_terms[0]
        for log_term in log_terms[1:]:
            power = _log_jump(power[:, sources] + log_weights, targets, power)
            total = torch.logaddexp(total, power + log_term)
        parts.append(total)
    return torch.cat(parts)


def _log_jump(terms: Tensor, targets: Tensor, like: Tensor) -> Tensor:
    """Return the logarithm of the sum of the terms of each target."""
    index = targets.expand_as(terms)
    top = torch.full_like(like, -torch.inf).scatter_reduce_(1, index, terms, "amax")
    level = top.where(top > -torch.inf, 0)
    shares = (terms - level[:, targets]).exp()
    return torch.zeros_like(like).scatter_add_(1, index, shares).log() + level


def _starts(index: Tensor, size: int) -> Tensor:
    counts = torch.bincount(index, minlength=size)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])
