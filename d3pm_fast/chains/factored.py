"""Cheaper forms of a matrix ``Qbar``, with a bound on what they leave out.

A form multiplies rows from the right. ``error`` bounds every entry of ``v Qbar`` for a
distribution v, beyond the rounding of the arithmetic. A centred form multiplies rows that sum to
zero and drops the part of ``Qbar`` that all its rows have in common.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Band", "Dense", "Form", "Identity", "LowRank", "best_form", "plain_form"]

LEAST_CLASSES = 64  # below it one product is as fast as several
BAND_BLOCK = 64
MIXED = 8.0  # the ratio of a column's entries up to which rounding leaves all of them their digits


class OfTensors:
    """What is known of a form from the tensors in its fields."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the arithmetic."""
        return self._tensors()[0].dtype

    @property
    def num_bytes(self) -> int:
        """What it holds."""
        return sum(tensor.nbytes for tensor in self._tensors())

    def _tensors(self) -> list[Tensor]:
        return [value for value in vars(self).values() if isinstance(value, Tensor)]


@dataclass(frozen=True)
class Dense(OfTensors):
    """The matrix itself; centred, without what all its rows have in common."""

    matrix: Tensor
    error: float
    is_centred: bool

    def apply(self, v: Tensor, out: Tensor) -> None:
        """Write ``v Qbar``."""
        torch.mm(v, self.matrix, out=out)

    def apply_transposed(self, r: Tensor, out: Tensor) -> None:
        """Write ``r Qbar^T``."""
        torch.mm(r, self.matrix.T, out=out)


@dataclass(frozen=True)
class Identity:
    """``Qbar_0``."""

    dtype: torch.dtype
    error: float
    is_centred = False
    num_bytes = 0

    def apply(self, v: Tensor, out: Tensor) -> None:
        """Write v."""
        out.copy_(v)

    def apply_transposed(self, r: Tensor, out: Tensor) -> None:
        """Write r."""
        out.copy_(r)


@dataclass(frozen=True)
class Band(OfTensors):
    """Zero, or less than ``error``, at ``|i - j| > half_width``."""

    matrix: Tensor
    half_width: int
    error: float
    is_centred = False

    def apply(self, v: Tensor, out: Tensor) -> None:
        """Write ``v Qbar``, block of columns by block of columns."""
        self._by_blocks(v, self.matrix, out)

    def apply_transposed(self, r: Tensor, out: Tensor) -> None:
        """Write ``r Qbar^T``."""
        self._by_blocks(r, self.matrix.T, out)

    def _by_blocks(self, rows: Tensor, matrix: Tensor, out: Tensor) -> None:
        k = len(matrix)
        for first in range(0, k, BAND_BLOCK):
            last = min(first + BAND_BLOCK, k)
            near = slice(max(first - self.half_width, 0), min(last + self.half_width, k))
            torch.mm(rows[:, near], matrix[near, first:last], out=out[:, first:last])


@dataclass(frozen=True)
class LowRank(OfTensors):
    """``Qbar = 1 pi^T + left right``; the first part is dropped."""

    left: Tensor
    right: Tensor
    error: float
    is_centred = True

    def apply(self, v: Tensor, out: Tensor) -> None:
        """Write ``v Qbar`` for rows that sum to zero."""
        torch.mm(v @ self.left, self.right, out=out)

    def apply_transposed(self, r: Tensor, out: Tensor) -> None:
        """Write ``r Qbar^T`` up to a number that all entries of a row share."""
        torch.mm(r @ self.right.T, self.left.T, out=out)


Form = Dense | Identity | Band | LowRank


def best_form(q_bar: Tensor, dtype: torch.dtype) -> Form:
    """Return the form of ``Qbar``, float64 ``(K, K)``, that takes the fewest operations.

    The choice rests on counts alone, so that results do not depend on timings.
    """
    plain = plain_form(q_bar, dtype)
    if isinstance(plain, Identity) or len(q_bar) < LEAST_CLASSES:
        return plain
    return _low_rank(q_bar, dtype) or _band(plain) or plain


def plain_form(q_bar: Tensor, dtype: torch.dtype) -> Identity | Dense:
    """Return the matrix itself as a form."""
    if torch.equal(q_bar, torch.eye(len(q_bar), dtype=q_bar.dtype, device=q_bar.device)):
        return Identity(dtype, least_factor(dtype))
    return _dense(q_bar, dtype)


def least_factor(dtype: torch.dtype) -> float:
    """Return the least number whose square is not below the dtype's range.

    The factors of a product are set to 0 below it: subnormal numbers take a hundred times as long.
    """
    return math.sqrt(torch.finfo(dtype).tiny)


def _dense(q_bar: Tensor, dtype: torch.dtype) -> Dense:
    least = least_factor(dtype)
    mixed = bool(is_mixed(q_bar))
    matrix = q_bar - q_bar.mean(0) if mixed else q_bar
    matrix = matrix.where(matrix.abs() >= least, 0).to(dtype)
    return Dense(matrix, (len(q_bar) + 1) * least, is_centred=mixed)


def is_mixed(q_bar: Tensor) -> Tensor:
    """Return whether the rows are so alike that what tells them apart is worth more digits."""
    return (q_bar.amax(0) <= MIXED * q_bar.amin(0)).all()


def _band(dense: Dense) -> Band | None:
    row, column = dense.matrix.nonzero(as_tuple=True)
    half_width = int((row - column).abs().max())
    if 2 * half_width + BAND_BLOCK > 0.6 * len(dense.matrix):
        return None
    return Band(dense.matrix, half_width, dense.error)


def _low_rank(q_bar: Tensor, dtype: torch.dtype) -> LowRank | None:
    """Return a factored form that keeps every entry of ``v Qbar`` to the digits of ``dtype``.

    Where the entries of a column differ by more than ``MIXED``, the small ones are differences
    that only float64 keeps; a float64 chain then has no such form.
    """
    mixed = bool(is_mixed(q_bar))
    if not mixed and dtype == torch.float64:
        return None
    work = dtype if mixed else torch.float64
    most = len(q_bar) // (4 if mixed else 8)
    pi = q_bar.mean(dim=0)
    rest = q_bar - pi
    eps = torch.finfo(dtype).eps
    bound = eps * float(q_bar.min()) / 4 if mixed else 1e-13 * float(q_bar.max())
    start = torch.empty(len(q_bar), most, dtype=torch.float64, device="cpu")
    start.normal_(generator=torch.Generator("cpu").manual_seed(0))
    basis = torch.linalg.qr(rest @ start.to(rest.device)).Q
    inner = basis.T @ rest
    if _distance(rest, basis, inner) > bound:
        return None
    left, values, right = torch.linalg.svd(inner, full_matrices=False)
    for rank in range(max(int((values > bound).sum()), 1), most + 1):
        factors = basis @ (left[:, :rank] * values[:rank]), right[:rank]
        error = _distance(rest, *factors)
        if error <= bound:
            return LowRank(factors[0].to(work), factors[1].to(work), 2 * error)
    return None


def _distance(matrix: Tensor, left: Tensor, right: Tensor) -> float:
    return float((matrix - left @ right).abs().max())
