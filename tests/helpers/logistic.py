"""The discretized logistic in 60 decimal digits: differences of the distribution function."""

import itertools
from typing import NamedTuple

import mpmath
import torch
from mpmath import mpf

DIGITS = 60


class Bins(NamedTuple):
    """Log-masses and their derivatives, float64 ``(N, K)``.

    The terms are what a derivative is the difference of, the smaller of two ways to write it: an
    ulp of it means an ulp of them.
    """

    logits: torch.Tensor
    by_loc: torch.Tensor
    by_log_scale: torch.Tensor
    loc_terms: torch.Tensor
    log_scale_terms: torch.Tensor


def exact_bins(loc, log_scale, num_classes, edge_corrected):
    """The bins of N distributions, ``loc`` and ``log_scale`` ``(N,)``."""
    with mpmath.workdps(DIGITS):
        pairs = zip(loc.tolist(), log_scale.tolist(), strict=True)
        rows = [_row(mpf(m), mpf(s), num_classes, edge_corrected) for m, s in pairs]
    return Bins(*torch.tensor(rows, dtype=torch.float64).permute(2, 0, 1))


def _row(loc, log_scale, num_classes, edge_corrected):
    inverse_scale = mpmath.exp(2 - log_scale)
    borders = [mpf(2 * k - num_classes) / (num_classes - 1) for k in range(num_classes + 1)]
    edges = [_Edge((border - loc) * inverse_scale) for border in borders]
    if edge_corrected:
        edges[0], edges[-1] = _Edge(-mpmath.inf), _Edge(mpmath.inf)
    return [_bin(a, b, inverse_scale) for a, b in itertools.pairwise(edges)]


class _Edge:
    def __init__(self, x):
        self.x = x
        self.below, self.above = 1 / (1 + mpmath.exp(-x)), 1 / (1 + mpmath.exp(x))
        self.density = self.below * self.above
        self.tanh = abs(self.below - self.above)

    def times(self, value):
        """``x value``, for a value that x at infinity makes 0."""
        return self.x * value if value else mpf(0)


def _bin(a, b, inverse_scale):
    mass = b.below - a.below if a.x < 0 else a.above - b.above
    by_loc = -inverse_scale * (b.density - a.density) / mass
    by_log_scale = -(b.times(b.density) - a.times(a.density)) / mass
    # An ulp of an edge counts too: in a tail it is worth |x| ulps.
    below, above = a.below + abs(a.times(a.density)), b.above + abs(b.times(b.density))
    loc_terms = inverse_scale * min(below + above, (a.tanh + b.tanh) / 2)
    d = b.x - a.x
    inside = d / mpmath.expm1(d) if mpmath.isfinite(d) else mpf(0)
    log_scale_terms = abs(a.times(below)) + abs(b.times(above)) + inside
    return [float(v) for v in (mpmath.log(mass), by_loc, by_log_scale, loc_terms, log_scale_terms)]
