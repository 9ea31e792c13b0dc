"""The loss of rank-one chains and its gradient: one read of the logits, one write of the gradient.

A row that fits is held by one program, many of them where classes are few; a longer one is read
three times, from the second time on out of the cache.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from ...chains.structures import RankOneStep
from ...records import Loss, Model
from ...reductions import reduced
from ..common.launch import constant, launch, triton_type
from ..common.once import once
from ..common.staged import staged_tile_of
from ..common.tile import Tile, classes_from, fill_rows, row_max, row_sum, tile_of
from .loss_long import (
    holds,
    is_curved,
    statistics_of_row,
    store_curved_gradient,
    store_settled_gradient,
    store_straight_gradient,
    sums_of_row,
    tile_of_long_row,
)
from .loss_rest import (
    highest,
    line_of,
    straight_gradient_of,
)
from .loss_row import ends_of, finish, needs_sums, result_alone, result_of, row_of, solve
from .loss_tokens import (
    LossCall,
    gradient_factor,
    load_special,
    load_tokens,
    store_loss,
    store_special,
    store_value,
)
from .loss_whole import (
    curvature_of_whole,
    exponentials_of_tile,
    gradient_of_whole,
    level_of,
    load_whole,
    row_of_whole,
    store_whole,
)
from .step import Chain, chain_of

# Classes of rows without pi that are held whole, one by a program.
FILLED_BY_A_ROW = {4096, 8192, 16384}


@triton.jit
def await_readers(a):
    """Wait for the threads that still read logits, where the gradient takes their place."""
    if a.IS_IN_PLACE:
        tl.debug_barrier()


@triton.jit
def loss_of_whole_rows(
    a, chain, vb_weight: tl.float64, ce_weight: tl.float64, grad_scale: tl.float64,
    model, REAL: tl.constexpr, FILLED: tl.constexpr,
    ROWS: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """For rows that a tile holds whole; FILLED where they fill it."""
    tokens, token = load_tokens(a, chain, vb_weight, ce_weight, model, REAL, ROWS)
    classes = classes_from(a, 0, ROWS, HIGH, LOW, FILLED)
    if a.SPARSE and tokens.read == ROWS:
        store_value(a, tokens)
        if a.grad is not None:
            if ROWS == 1:
                fill_rows(a, a.grad, classes, tokens.value)
            else:
                fill_rows(a, a.grad, classes, tl.zeros([1], REAL))
    else:
        logits = load_whole(a, chain, tokens, classes, REAL, FILLED)
        special = load_special(a, chain, tokens, REAL)
        level = level_of(highest(tokens, once(row_max(logits)), special))
        e = exponentials_of_tile(a, classes, logits, level)
        row = row_of_whole(a, level, once(row_sum(e)), special)
        solved = solve(token, row, REAL)
        if tl.max(needs_sums(a, token, solved, REAL).to(tl.int32), axis=0) > 0:
            ends = ends_of(a, token, row, solved, REAL)
            curves, sum_phi, sum_h = curvature_of_whole(
                a, chain, tokens, classes, e, row, level, solved, FILLED
            )
            result = result_of(ends, solved, sum_phi, sum_h)
            store_loss(a, tokens, token, solved, result)
            if a.grad is not None:
                factor = gradient_factor(a, grad_scale, REAL)
                await_readers(a)
                store_whole(a, classes, gradient_of_whole(chain, tokens, e, curves, result, factor))
                store_special(a, chain, tokens, result, factor)
        else:
            result = result_alone(ends_of(a, token, row, solved, REAL, True))
            store_loss(a, tokens, token, solved, result)
            if a.grad is not None:
                factor = gradient_factor(a, grad_scale, REAL)
                await_readers(a)
                store_whole(a, classes, straight_gradient_of(tokens, e, result, factor))
                store_special(a, chain, tokens, result, factor)


@triton.jit
def loss_of_long_rows(
    a, chain, vb_weight: tl.float64, ce_weight: tl.float64, grad_scale: tl.float64,
    model, REAL: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr, THREADS: tl.constexpr,
):  # fmt: skip
    """A row a program, a tile of classes at a time."""
    tokens, token = load_tokens(a, chain, vb_weight, ce_weight, model, REAL, 1)
    if holds(tokens.settled):
        store_value(a, tokens)
        if a.grad is not None:
            store_settled_gradient(a, tokens, HIGH, LOW)
    else:
        special = load_special(a, chain, tokens, REAL)
        top, e_rest = statistics_of_row(a, chain, tokens, special, REAL, HIGH, LOW, THREADS)
        row = row_of(a, top, e_rest, special)
        solved = solve(token, row, REAL)
        line = line_of(chain, solved)
        if is_curved(line):
            sum_phi, sum_h = sums_of_row(a, chain, tokens, line, top, e_rest, REAL, HIGH, LOW)
            result = finish(a, token, row, solved, sum_phi, sum_h, REAL)
            store_loss(a, tokens, token, solved, result)
            if a.grad is not None:
                factor = gradient_factor(a, grad_scale, REAL)
                await_readers(a)
                store_curved_gradient(a, chain, tokens, line, top, result, factor, REAL, HIGH, LOW)
        else:
            zero = tl.zeros([1], REAL)
            result = finish(a, token, row, solved, zero, zero, REAL)
            store_loss(a, tokens, token, solved, result)
            if a.grad is not None:
                factor = gradient_factor(a, grad_scale, REAL)
                await_readers(a)
                store_straight_gradient(a, chain, tokens, top, result, factor, REAL, HIGH, LOW)


class Prepared(NamedTuple):
    """The arguments of a loss by tokens, and what is made of its results."""

    call: LossCall
    chain: Chain
    grad_scale: float
    real: torch.dtype
    count: torch.Tensor | None

    def result(self, reduction: str) -> Any:
        """Return the loss reduced, and its gradient if there is one."""
        value = reduced(self.call.loss, reduction, self.count, self.call.WITH_TERMS.value)
        return value if self.call.grad is None else (value, self.call.grad)


def prepared(
    of: Loss[RankOneStep], reduction: str, late: bool | None, room: torch.Tensor | None = None
) -> Prepared:
    """Return what a kernel takes for a loss, and with ``late`` for its gradient."""
    grad = room
    if late is not None and room is None:
        grad = torch.empty_like(of.logits)
    logits, x0, mask, x_t, step, _, weights, is_density, with_terms = of
    real = torch.float64 if logits.dtype == torch.float64 else torch.float32
    num_tokens, num_classes = x0.numel(), logits.shape[-1]
    shape = *x0.shape, *((3,) if with_terms else ())
    token_loss = torch.empty(shape, dtype=real, device=logits.device)
    mean = reduction == "mean"
    count = mask.sum().to(real) if mask is not None and mean else None
    early = mean and not late
    arguments = LossCall(
        logits,
        x0,
        x_t,
        mask,
        weights.tokens,
        token_loss,
        grad,
        count if early else None,
        num_tokens,
        num_classes,
        int(is_density),
        tl.constexpr(with_terms),
        tl.constexpr(step.mask_id >= 0),
        tl.constexpr(step.mask_id >= 0 or mask is not None),
        IS_IN_PLACE=tl.constexpr(room is not None),
    )
    scale = 1 / max(num_tokens, 1) if early and count is None else 1.0
    return Prepared(arguments, chain_of(num_tokens, step, real), scale, real, count)


def tile_for(call: LossCall, chain: Chain, model: Model) -> Tile:
    """Return the tile of a loss: many numbers a thread, as all repeat the mathematics of a row."""
    num_classes, dtype = call.num_classes, call.logits.dtype
    has_pi = chain.pi is not None
    copies = 2 if has_pi or call.grad is not None else 1
    if dtype == torch.float64:
        return tile_of(num_classes, dtype, copies)
    numbers, vector = 64, 16 // dtype.itemsize
    if num_classes in FILLED_BY_A_ROW and not has_pi:
        high = numbers // vector
        return Tile(1, high, num_classes // high, num_classes // (32 * numbers))
    fills = num_classes == triton.next_power_of_2(num_classes) <= 2048
    if has_pi:  # takes registers, too
        fills &= (
            num_classes > 128 and dtype.itemsize == 2 and chain.mask_id < 0 and call.mask is None
        )
        fills &= not model.posterior_mean
    return tile_of(num_classes, dtype, copies, numbers if fills else numbers // 2)


def loss(
    of: Loss[RankOneStep],
    reduction: str,
    late: bool | None = None,
    room: torch.Tensor | None = None,
) -> Any:
    """Return the loss, and with ``late`` its gradient, which a mean leaves undivided where True.

    The gradient is new, or in the ``room`` of the logits themselves.
    """
    made = prepared(of, reduction, late, room)
    call, chain, scale, real, _ = made
    num_classes = call.num_classes
    tile = staged_tile_of(num_classes, of.logits.dtype)
    if tile is not None:
        call = call._replace(num_classes=tl.constexpr(num_classes), IS_STAGED=tl.constexpr(True))
    else:
        tile = tile_for(call, chain, of.model)
    if tile.num_classes < num_classes:
        tile, threads = tile_of_long_row(num_classes, of.logits.dtype)
        kernel, shape = loss_of_long_rows, (tile.high, tile.low, threads)
    else:
        filled = tile.num_classes == num_classes
        kernel, shape = loss_of_whole_rows, (filled, tile.rows, tile.high, tile.low)
    weights, programs = of.weights, triton.cdiv(call.num_tokens, tile.rows)
    launch(
        kernel, programs, of.logits, call, chain, weights.vb, weights.ce, scale, constant(of.model),
        triton_type(real), *shape, num_warps=tile.num_warps,
    )  # fmt: skip
    return made.result(reduction)
