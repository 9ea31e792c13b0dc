"""The truncated discretized logistic (D3PM, appendix A.8); csrc/cpu/logistic_target.h derives it.

With s the logistic function and K + 1 edges x_k, d apart,
``logit_k = log s(x_{k+1}) + log s(-x_k) + log(1 - exp(-d))``; the gradients of both parameters
are sums over the edges.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.launch import launch, triton_type
from ..common.math import exp, expm1, phi
from ..common.tile import classes_from, load_tile, on_flat, on_tile, row_sum, store_tile, tile_of


class LogisticCall(NamedTuple):
    """The tensors of all tokens."""

    loc: Any
    log_scale: Any
    logits: Any  # (N, K), or their gradient, in the type of the calculation
    out_loc: Any  # the parameters' gradients; None where logits are made
    out_log_scale: Any
    num_tokens: Any
    num_classes: Any


class Edges(NamedTuple):
    """The edges of tokens: ``x_k = ((2k - K - whole) - rest) slope``."""

    at: Any
    inside: Any
    inverse_scale: Any  # float64, as is the width d
    width: Any
    whole: Any
    rest: Any
    slope: Any


@triton.jit
def load_edges(a, REAL: tl.constexpr, ROWS: tl.constexpr):
    """Return the edges of the program's tokens.

    In halves of a bin loc is a whole number, which goes without rounding, and a rest: an edge is
    within ulps of itself however large loc or narrow the scale.
    """
    at = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = at < a.num_tokens
    loc = tl.load(a.loc + at, mask=inside, other=0.0).to(tl.float64)
    log_scale = tl.load(a.log_scale + at, mask=inside, other=0.0).to(tl.float64)
    limit = tl.full([ROWS], 4e307 if REAL == tl.float64 else 8e37, tl.float64)
    halves = tl.full([ROWS], 1.0, tl.float64) * (a.num_classes - 1)
    steep = tl.where(log_scale < -600.0, 600.0, tl.where(log_scale > 600.0, -600.0, -log_scale))
    inverse_scale = tl.exp(steep) * 7.38905609893065023
    width = 2.0 * inverse_scale / halves
    most = limit / halves
    loc = tl.where(loc < -most, -most, tl.where(loc > most, most, loc))
    product = loc * halves
    large = tl.abs(product) > 4503599627370496.0
    nearest = (product + 6755399441055744.0) - 6755399441055744.0
    whole = tl.where(large, product, nearest).to(REAL)
    rest = tl.fma(loc, halves, -whole.to(tl.float64)).to(REAL)
    # A scale too narrow for this type: the narrowest at which no edge overflows.
    narrowest = limit / (halves + 1.0 + tl.abs(product))
    slope = tl.where(width / 2.0 > narrowest, narrowest, width / 2.0).to(REAL)
    return Edges(at, inside, inverse_scale, width, whole, rest, slope)


@triton.jit
def edge(edges, k, num_classes):
    """Return x_k."""
    steps = (2 * k - num_classes).to(edges.slope.dtype)
    return ((steps - on_tile(edges.whole)) - on_tile(edges.rest)) * on_tile(edges.slope)


@triton.jit
def log_sigmoid(x):
    """Return log s(x)."""
    e = exp(tl.where(x > 0.0, -x, x))
    return tl.where(x < 0.0, x, 0.0) - (e - phi(e, 1.0 + e))


@triton.jit
def logits_of_rows(
    a, EDGE_CORRECTED: tl.constexpr, REAL: tl.constexpr,
    ROWS: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """Write the log of each bin's mass."""
    edges = load_edges(a, REAL, ROWS)
    log_inside = on_tile(tl.log(-expm1(-edges.width)).to(REAL))
    last = a.num_classes - 1
    for start in range(0, a.num_classes, HIGH * LOW):
        bins = classes_from(a, start, ROWS, HIGH, LOW)
        k = bins.j
        below = log_sigmoid(edge(edges, k + 1, a.num_classes))
        above = log_sigmoid(-edge(edges, k, a.num_classes))
        logits = below + above + log_inside
        if EDGE_CORRECTED:
            logits = tl.where(k == 0, below, tl.where(k == last, above, logits))
        store_tile(a.logits, bins, logits)


@triton.jit
def load_gradient(a, edges, bins, BEFORE: tl.constexpr, EDGE_CORRECTED: tl.constexpr):
    """Return the logits' gradient of so many bins before, 0 where none is or it stands for more."""
    k = bins.flat - BEFORE
    reads = (k >= 0) & (k < a.num_classes)
    if EDGE_CORRECTED:
        reads = (k > 0) & (k < a.num_classes - 1)
    reads &= on_flat(edges.inside, bins.j.shape[0])
    return load_tile(a.logits - BEFORE, bins, reads, 0.0)


@triton.jit
def gradient_of_rows(
    a, EDGE_CORRECTED: tl.constexpr, REAL: tl.constexpr,
    ROWS: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """Write the gradients of loc and log_scale; narrow bins leave out what cancels."""
    edges = load_edges(a, REAL, ROWS)
    is_narrow = edges.width < 1.0
    per_g = edges.width * tl.exp(-edges.width) / -expm1(-edges.width)  # d / (exp(d) - 1)
    per_g = tl.where(is_narrow, per_g + edges.width / 2.0, per_g).to(REAL)
    sum_f = tl.zeros([ROWS], tl.float64)
    sum_xf = tl.zeros([ROWS], tl.float64)
    for start in range(0, a.num_classes + 1, HIGH * LOW):
        bins = classes_from(a, start, ROWS, HIGH, LOW)
        k = bins.j
        x = edge(edges, k, a.num_classes)
        here = load_gradient(a, edges, bins, 0, EDGE_CORRECTED)
        before = load_gradient(a, edges, bins, 1, EDGE_CORRECTED)
        down = tl.where(x > 0.0, -x, x)
        m, e = expm1(down), exp(down)
        tanh = tl.where(x > 0.0, -m, m) / (2.0 + m)
        near = 1.0 / (1.0 + e)
        far = e * near
        narrow = (here + before) * 0.5 * tanh
        wide = here * tl.where(x > 0.0, near, far) - before * tl.where(x > 0.0, far, near)
        f = tl.where(on_tile(is_narrow), narrow, wide)
        f = tl.where(k <= a.num_classes, f, 0.0)
        sum_f += row_sum(f).to(tl.float64)
        sum_xf += row_sum(x * f - on_tile(per_g) * here).to(tl.float64)
    if EDGE_CORRECTED:
        rows = a.logits + edges.at * a.num_classes
        first = tl.load(rows, mask=edges.inside, other=0.0).to(tl.float64)
        last = tl.load(rows + a.num_classes - 1, mask=edges.inside, other=0.0).to(tl.float64)
        slope = edges.slope.to(tl.float64)
        of_first = (2 - a.num_classes - edges.whole.to(tl.float64)) - edges.rest.to(tl.float64)
        of_last = (a.num_classes - 2 - edges.whole.to(tl.float64)) - edges.rest.to(tl.float64)
        f_first = -first / (1.0 + tl.exp(of_first * slope))
        f_last = last / (1.0 + tl.exp(-of_last * slope))
        sum_f += f_first + f_last
        sum_xf += of_first * slope * f_first + of_last * slope * f_last
    kind = a.out_loc.dtype.element_ty
    tl.store(
        a.out_loc + edges.at, (sum_f * edges.inverse_scale).to(REAL).to(kind), mask=edges.inside
    )
    tl.store(a.out_log_scale + edges.at, sum_xf.to(REAL).to(kind), mask=edges.inside)


def logits(loc: Tensor, log_scale: Tensor, num_classes: int, edge_corrected: bool) -> Tensor:
    """Return the log of each bin's mass."""
    real = torch.float64 if loc.dtype == torch.float64 else torch.float32
    out = torch.empty(*loc.shape, num_classes, dtype=real, device=loc.device)
    a = LogisticCall(loc, log_scale, out, None, None, loc.numel(), num_classes)
    _run(logits_of_rows, a, edge_corrected)
    return out


def gradient(
    loc: Tensor, log_scale: Tensor, grad: Tensor, edge_corrected: bool
) -> tuple[Tensor, Tensor]:
    """Return the gradients of both parameters from that of the logits."""
    out = torch.empty_like(loc), torch.empty_like(log_scale)
    a = LogisticCall(loc, log_scale, grad, *out, loc.numel(), grad.shape[-1])
    _run(gradient_of_rows, a, edge_corrected)
    return out


def _run(kernel: Any, a: LogisticCall, edge_corrected: bool) -> None:
    tile = tile_of(a.num_classes, a.logits.dtype, copies=4)
    launch(
        kernel, triton.cdiv(a.num_tokens, tile.rows), a.logits,
        a, edge_corrected, triton_type(a.logits.dtype),
        tile.rows, tile.high, tile.low, num_warps=tile.num_warps,
    )  # fmt: skip
