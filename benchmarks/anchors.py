"""Kernels whose speed is known from others' measurements, to hold the count of slots against.

A copy, a softmax and a cross-entropy of rows that a program holds whole. Kernels like these are
reported to reach about the bandwidth of a copy (the tutorial "Fused Softmax" of Triton; QuACK,
about 3 TB/s on an H100): the count must not say that they cannot.
"""

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from d3pm_fast.kernels.common.launch import launch
from torch import Tensor

NUMBERS = 32  # of a thread


@triton.jit
def copy_of_blocks(source, target, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + at, tl.load(source + at))


@triton.jit
def softmax_of_rows(source, target, num_classes, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    j = tl.arange(0, BLOCK)
    at, there = row[:, None] * num_classes + j[None, :], (j < num_classes)[None, :]
    x = tl.load(source + at, mask=there, other=float("-inf")).to(tl.float32)
    e = tl.exp(x - tl.max(x, axis=1)[:, None])
    tl.store(target + at, e / tl.sum(e, axis=1)[:, None], mask=there)


@triton.jit
def cross_entropy_of_rows(
    source, classes, loss, grad, num_classes, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    j = tl.arange(0, BLOCK)
    at, there = row[:, None] * num_classes + j[None, :], (j < num_classes)[None, :]
    x0 = tl.load(classes + row).to(tl.int32)
    x = tl.load(source + at, mask=there, other=float("-inf")).to(tl.float32)
    x = x - tl.max(x, axis=1)[:, None]
    e = tl.exp(x)
    total, here = tl.sum(e, axis=1), j[None, :] == x0[:, None]
    tl.store(loss + row, tl.log(total) - tl.sum(tl.where(here, x, 0.0), axis=1))
    share = e / total[:, None] - tl.where(here, 1.0, 0.0)
    tl.store(grad + at, share, mask=there)


def anchors(logits: Tensor, tokens: Tensor) -> dict[str, Callable[[], Any]]:
    """Return a call of each, by name, for logits (N, K) and tokens (N,)."""
    num_tokens, num_classes = logits.shape
    target, loss = torch.empty_like(logits), torch.empty_like(tokens, dtype=torch.float32)
    whole = triton.next_power_of_2(num_classes)
    warps = max(4, whole // (32 * NUMBERS))
    rows = warps * 32 * NUMBERS // whole

    def start(kernel: Any, *args: Any, shape: tuple[int, ...]) -> None:
        programs = triton.cdiv(num_tokens, rows)
        launch(kernel, programs, logits, *args, *shape, num_warps=warps)

    return {
        "copy": lambda: start(copy_of_blocks, logits, target, shape=(rows * whole,)),
        "softmax": lambda: start(softmax_of_rows, logits, target, num_classes, shape=(rows, whole)),
        "cross_entropy": lambda: start(
            cross_entropy_of_rows, logits, tokens, loss, target, num_classes, shape=(rows, whole)
        ),
    }
