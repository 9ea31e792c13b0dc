"""How far the logit of a token's class is below the largest of its row."""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.launch import launch, triton_type
from ..common.tile import classes_from, load_tile, row_max, tile_of


class GapCall(NamedTuple):
    """The tensors of all tokens."""

    logits: Any  # (N, K)
    x: Any  # (N,)
    out: Any  # (N,), in the type of the calculation
    num_tokens: Any
    num_classes: Any


@triton.jit
def gap_of_rows(
    a, REAL: tl.constexpr, ROWS: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr
):  # fmt: skip
    """Write NaN for a bad class."""
    at = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    x = tl.load(a.x + at, mask=at < a.num_tokens, other=-1)
    good = (x >= 0) & (x < a.num_classes)
    own = tl.load(a.logits + at * a.num_classes + x, mask=good, other=float("nan")).to(REAL)
    top = tl.full([ROWS], float("-inf"), REAL)
    for start in range(0, a.num_classes, HIGH * LOW):
        classes = classes_from(a, start, ROWS, HIGH, LOW)
        logits = load_tile(a.logits, classes, classes.there, float("-inf"))
        top = tl.maximum(top, row_max(logits.to(REAL)))
    tl.store(a.out + at, top - own, mask=at < a.num_tokens)


def gap(logits: Tensor, x: Tensor) -> Tensor:
    """Return ``max_j logit_j - logit_x`` of each token; NaN for a bad class."""
    real = torch.float64 if logits.dtype == torch.float64 else torch.float32
    out = torch.empty(x.shape, dtype=real, device=x.device)
    tile = tile_of(logits.shape[-1], logits.dtype)
    launch(
        gap_of_rows, triton.cdiv(x.numel(), tile.rows), logits,
        GapCall(logits, x, out, x.numel(), logits.shape[-1]), triton_type(real),
        tile.rows, tile.high, tile.low, num_warps=tile.num_warps,
    )  # fmt: skip
    return out
