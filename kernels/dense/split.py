"""The two products as kernels of their own, with rows of K float32 numbers between them."""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...chains.tables import StepTables
from ..common.launch import launch
from .call import DenseCall, Weights, has_bound, weighted, weights_of
from .divergence import reached_by
from .multiply import load_parts, multiply
from .predict import (
    Softmax,
    powers_of,
    probabilities,
    softmax_from,
    softmax_of,
    top_of,
    value_at_anchor,
)
from .pull import store_anchor, store_row
from .shape import PRECISION, Shape, row_shape, split_shape
from .tiles import Tiles, load_rows, tiles_of, tokens_per_step


class Between(NamedTuple):
    """What lies between the kernels of one call."""

    v: Any  # (N, K): s but for a factor, of a loss with another number at the anchor
    scale: Any  # (N,): the factor
    rows: Any  # (N, K): f less what the rows of Qbar_s have in common, or r
    known: Any  # (7, N): of a loss, the fields of Known
    mean: Any  # (N,): what G is counted from


class Split(NamedTuple):
    """How a call is cut into programs."""

    tiles: Tiles
    num_tiles: int
    num_steps: int
    shape: Shape
    row_shape: tuple[int, int]  # rows, and columns at a time, where there is no product
    blocks: int  # of columns


class Known(NamedTuple):
    """What a loss knows of rows from their logits alone, and where."""

    anchor: Any  # s of the anchor
    others: Any
    cross_entropy: Any
    top: Any  # of the softmax without a tilt
    per_sum: Any
    z: Any
    change: Any


@triton.jit
def between_at(a, table, rows, classes):
    """Return where the numbers of some classes are, and which of them there are."""
    inside = rows.inside[:, None] & (classes < a.num_classes)
    return table + rows.at[:, None] * a.num_classes + classes, inside


@triton.jit
def load_between(a, table, rows, classes):
    """Return the numbers of some classes."""
    at, inside = between_at(a, table, rows, classes)
    return tl.load(at, mask=inside, other=0.0)


@triton.jit
def store_between(a, table, rows, classes, values):
    """Write the numbers of some classes; those of rows that are not wanted come to nothing."""
    at, inside = between_at(a, table, rows, classes)
    tl.store(at, values, mask=inside)


@triton.jit
def load_known(a, between, rows, field: tl.constexpr):
    """Return a field of Known."""
    return tl.load(between.known + field * a.num_tokens + rows.at, mask=rows.inside, other=0.0)


@triton.jit
def store_known(a, between, rows, field: tl.constexpr, value):
    """Write a field of Known."""
    tl.store(between.known + field * a.num_tokens + rows.at, value, mask=rows.inside)


@triton.jit
def predict_rows(
    a, steps, tiles, between, num_steps,
    TILTED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write v, and what a loss knows of rows."""
    rows = load_rows(a, tiles, tl.program_id(0), num_steps, ROWS)
    top = top_of(a, steps, rows, TILTED, ROWS, BLOCK)
    others = tl.zeros([ROWS], tl.float32)
    z = tl.zeros([ROWS], tl.float32)
    change = tl.zeros([ROWS], tl.float32)
    for start in range(0, a.num_classes, BLOCK):
        i = start + tl.arange(0, BLOCK)[None, :]
        e, more = powers_of(a, steps, rows, top, i, TILTED)
        others += more
        if a.loss is not None:
            reached, changes = reached_by(a, steps, rows, e, i)
            z += reached
            change += changes
        store_between(a, between.v, rows, i, e)
    softmax = softmax_from(a, steps, rows, top, others, TILTED)
    tl.store(between.scale + rows.at, softmax.per_sum, mask=rows.inside)
    if a.loss is not None:
        tl.debug_barrier()
        at = between.v + rows.at * a.num_classes + rows.anchor
        tl.store(at, value_at_anchor(a, steps, rows, others), mask=rows.inside)
        plain = softmax
        if TILTED:
            plain = softmax_of(a, steps, rows, False, ROWS, BLOCK)
        store_known(a, between, rows, 0, softmax.anchor)
        store_known(a, between, rows, 1, softmax.others)
        store_known(a, between, rows, 2, plain.cross_entropy)
        store_known(a, between, rows, 3, plain.top)
        store_known(a, between, rows, 4, plain.per_sum)
        store_known(a, between, rows, 5, z * softmax.per_sum)
        store_known(a, between, rows, 6, change * softmax.per_sum)


@triton.jit
def classes_of_bound(a, steps, rows, weights, DIRECT: tl.constexpr):
    """Return how many classes a product is of; 0 where the divergence is not wanted of any row."""
    w = weights_of(a, steps, rows.step, rows.at, rows.inside, weights, DIRECT, tl.float32)
    return tl.where(has_bound(w), a.num_classes, 0)


@triton.jit
def carry_rows(
    a, steps, tiles, between, weights, num_steps, DIRECT: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write a block of columns of ``v Qbar_s``, less what its rows have in common."""
    blocks = tl.cdiv(a.num_classes, COLUMNS)
    rows = load_rows(a, tiles, tl.program_id(0) // blocks, num_steps, ROWS)
    j = tl.program_id(0) % blocks * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    carried = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, classes_of_bound(a, steps, rows, weights, DIRECT), BLOCK):
        i = start + tl.arange(0, BLOCK)
        v = load_between(a, between.v, rows, i[None, :])
        carried = multiply(v, load_parts(a, steps, rows, i[:, None], j), carried, PRECISION)
    scale = tl.load(between.scale + rows.at, mask=rows.inside, other=0.0)
    store_between(a, between.rows, rows, j, scale[:, None] * carried)


@triton.jit
def pull_rows(
    a, steps, tiles, between, weights, num_steps, DIRECT: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write a block of columns of ``s (G - its mean under s)`` in the place of v."""
    blocks = tl.cdiv(a.num_classes, COLUMNS)
    rows = load_rows(a, tiles, tl.program_id(0) // blocks, num_steps, ROWS)
    i = tl.program_id(0) % blocks * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    pull = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, classes_of_bound(a, steps, rows, weights, DIRECT), BLOCK):
        j = start + tl.arange(0, BLOCK)
        r = load_between(a, between.rows, rows, j[None, :])
        pull = multiply(r, load_parts(a, steps, rows, i, j[:, None]), pull, PRECISION)
    mean = tl.load(between.mean + rows.at, mask=rows.inside, other=0.0)
    scale = tl.load(between.scale + rows.at, mask=rows.inside, other=0.0)
    s = scale[:, None] * load_between(a, between.v, rows, i)
    store_between(a, between.v, rows, i, s * (pull - mean[:, None]))


@triton.jit
def gradient_of_pull(
    a, steps, tiles, between, weights, num_steps,
    DIRECT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write the gradient."""
    rows = load_rows(a, tiles, tl.program_id(0), num_steps, ROWS)
    w = weights_of(a, steps, rows.step, rows.at, rows.inside, weights, DIRECT, tl.float32)
    plain = Softmax(0.0, 0.0, 0.0, 0.0, 0.0)
    if a.loss is not None:
        top, per_sum = load_known(a, between, rows, 3), load_known(a, between, rows, 4)
        plain = Softmax(top, per_sum, 0.0, 0.0, 0.0)
    others = tl.zeros([ROWS], tl.float32)
    for start in range(0, a.num_classes, COLUMNS):
        i = start + tl.arange(0, COLUMNS)[None, :]
        pulled = weighted(w.vb[:, None], load_between(a, between.v, rows, i))
        if a.loss is not None:
            pulled += w.ce[:, None] * probabilities(a, steps, rows, plain, i, False)
        gradient = tl.where(i == rows.anchor[:, None], 0.0, w.grad * pulled)
        store_row(a, rows, i, gradient)
        others += tl.sum(gradient, axis=1)
    store_anchor(a, rows, others)


def split_of(a: DenseCall, steps: StepTables, which: Tensor) -> Split:
    """Cut a call into programs."""
    num_steps = len(steps.s)
    shape = split_shape(a.num_classes, tokens_per_step(which, num_steps, a.num_tokens))
    tiles, num_tiles = tiles_of(which, num_steps, a.num_tokens, shape.rows)
    of_rows = row_shape(a.num_classes, shape.rows)
    blocks = triton.cdiv(a.num_classes, shape.columns)
    return Split(tiles, num_tiles, num_steps, shape, of_rows, blocks)


def carry_by(
    a: DenseCall, steps: StepTables, split: Split, weights: Weights,
    posterior_mean: bool, direct: bool,
) -> Between:  # fmt: skip
    """Return f of all rows, less what those of Qbar_s have in common."""
    v = torch.empty(a.num_tokens, a.num_classes, dtype=torch.float32, device=a.x_t.device)
    known = v.new_empty(len(Known._fields), 0 if a.loss is None else a.num_tokens)
    scale, mean = v.new_empty(a.num_tokens), v.new_zeros(a.num_tokens)
    between = Between(v, scale, torch.empty_like(v), known, mean)
    common, shape = (a, steps, split.tiles, between), split.shape
    launch(
        predict_rows, split.num_tiles, a.x_t, *common, split.num_steps, posterior_mean,
        *split.row_shape, num_warps=shape.num_warps,
    )  # fmt: skip
    launch(
        carry_rows, split.num_tiles * split.blocks, a.x_t, *common, weights, split.num_steps,
        direct, PRECISION, *shape[:3], num_warps=shape.num_warps, num_stages=2,
    )  # fmt: skip
    return between


def pull_by(
    a: DenseCall, steps: StepTables, split: Split, between: Between, weights: Weights, direct: bool
) -> None:
    """Write the gradient of all rows."""
    shape, common = split.shape, (a, steps, split.tiles, between, weights, split.num_steps, direct)
    launch(
        pull_rows, split.num_tiles * split.blocks, a.x_t, *common, PRECISION, *shape[:3],
        num_warps=shape.num_warps, num_stages=2,
    )  # fmt: skip
    launch(
        gradient_of_pull, split.num_tiles, a.x_t, *common, *split.row_shape,
        num_warps=shape.num_warps,
    )  # fmt: skip
