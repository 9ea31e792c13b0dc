"""The two products as kernels of their own, with rows of K float32 numbers between them."""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from ...chains.tables import StepTables
from ..common.launch import launch
from .call import DenseCall, Weights, has_bound, weights_of
from .predict import carry, load_matrix, softmax_of
from .pull import gradient_of, store_anchor, store_row
from .shape import PRECISION, split_shape
from .tiles import Tiles, load_rows


class Between(NamedTuple):
    """What lies between the kernels of one call."""

    rows: Any  # (N, K): f less what the rows of Qbar_s have in common, or r
    sums: Any  # (N, blocks, 4): of the loss
    mean: Any  # (N,): what G is counted from
    others: Any  # (N, blocks): sums of the gradient without the anchor


@triton.jit
def between_at(a, between, rows, classes):
    """Return where the numbers of some classes are, and which of them there are."""
    inside = rows.inside[:, None] & (classes < a.num_classes)
    return between.rows + rows.at[:, None] * a.num_classes + classes, inside


@triton.jit
def store_between(a, between, rows, classes, values):
    """Write the numbers of some classes, 0 in rows that are not wanted."""
    at, inside = between_at(a, between, rows, classes)
    tl.store(at, tl.where(rows.reads, values, 0.0), mask=inside)


@triton.jit
def carry_rows(
    a, steps, tiles, between, num_steps, TILTED: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write a block of columns of f, less what the rows of Qbar_s have in common."""
    blocks = tl.cdiv(a.num_classes, COLUMNS)
    rows = load_rows(a, tiles, tl.program_id(0) // blocks, num_steps, ROWS)
    softmax = softmax_of(a, steps, rows, TILTED, ROWS, BLOCK)
    j = tl.program_id(0) % blocks * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    f = carry(a, steps, rows, softmax, j, False, TILTED, PRECISION, ROWS, COLUMNS, BLOCK)
    store_between(a, between, rows, j, f)


@triton.jit
def pull_rows(
    a, steps, tiles, between, weights, num_steps,
    TILTED: tl.constexpr, DIRECT: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write a block of columns of the gradient; what it writes to the anchor is to be replaced."""
    blocks = tl.cdiv(a.num_classes, COLUMNS)
    block = tl.program_id(0) % blocks
    rows = load_rows(a, tiles, tl.program_id(0) // blocks, num_steps, ROWS)
    w = weights_of(a, steps, rows.step, rows.at, rows.inside, weights, DIRECT, tl.float32)
    plain = softmax_of(a, steps, rows, False, ROWS, BLOCK)
    tilted = plain
    if TILTED:
        tilted = softmax_of(a, steps, rows, True, ROWS, BLOCK)
    i = block * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    pull = tl.zeros([ROWS, COLUMNS], tl.float32)
    mean = tl.zeros([ROWS], tl.float32)
    if has_bound(w):
        mean += tl.load(between.mean + rows.at, mask=rows.live, other=0.0)
        for start in range(0, a.num_classes, BLOCK):
            j = start + tl.arange(0, BLOCK)
            at, inside = between_at(a, between, rows, j[None, :])
            r = tl.load(at, mask=inside, other=0.0)
            matrix = load_matrix(a, steps, rows, i, j[:, None])
            pull = tl.dot(r, matrix, pull, input_precision=PRECISION)
    gradient = w.grad * gradient_of(
        a, steps, rows, tilted, plain, pull, mean, i, w.vb, w.ce, TILTED
    )
    store_row(a, rows, i, gradient)
    others = tl.sum(gradient, axis=1)
    tl.store(between.others + rows.at * blocks + block, others, mask=rows.inside)


@triton.jit
def anchors_of_rows(a, tiles, between, num_steps, blocks, ROWS: tl.constexpr):
    """Write the gradient of the anchors."""
    rows = load_rows(a, tiles, tl.program_id(0), num_steps, ROWS)
    others = tl.zeros([ROWS], tl.float32)
    for block in range(blocks):
        others += tl.load(between.others + rows.at * blocks + block, mask=rows.live, other=0.0)
    store_anchor(a, rows, others)


def room_between(a: DenseCall) -> Between:
    """Return room for what lies between the kernels."""
    blocks = triton.cdiv(a.num_classes, split_shape(a.num_classes).columns)
    rows = torch.empty(a.num_tokens, a.num_classes, dtype=torch.float32, device=a.x_t.device)
    sums = rows.new_empty(a.num_tokens, blocks, 4)
    return Between(rows, sums, rows.new_zeros(a.num_tokens), rows.new_empty(sums.shape[:2]))


def carry_by(
    a: DenseCall, steps: StepTables, tiles: Tiles, num_tiles: int, posterior_mean: bool
) -> Between:
    """Return f of all rows, less what those of Qbar_s have in common."""
    between, shape = room_between(a), split_shape(a.num_classes)
    launch(
        carry_rows, num_tiles * between.sums.shape[1], a.x_t, a, steps, tiles, between,
        len(steps.s), posterior_mean, PRECISION, *shape[:3], num_warps=shape.num_warps,
    )  # fmt: skip
    return between


def pull_by(
    a: DenseCall, steps: StepTables, tiles: Tiles, num_tiles: int,
    between: Between, weights: Weights, *model: bool,
) -> None:  # fmt: skip
    """Write the gradient of all rows."""
    num_steps, blocks, shape = len(steps.s), between.sums.shape[1], split_shape(a.num_classes)
    launch(
        pull_rows, num_tiles * blocks, a.x_t, a, steps, tiles, between, weights, num_steps,
        *model, PRECISION, *shape[:3], num_warps=shape.num_warps,
    )  # fmt: skip
    launch(
        anchors_of_rows, num_tiles, a.x_t, a, tiles, between, num_steps, blocks, shape.rows,
        num_warps=shape.num_warps,
    )  # fmt: skip
