"""What the compiled modules take: the records of ``csrc/calls.h``, with addresses for tensors."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from .. import _compiled
from .._checks import check_data, check_range
from ..chains.structures import RankOneMarginal, RankOneStep
from ..records import Loss, Random, Shaping
from ..reference.logspace import compute_dtype


def pointer(tensor: Tensor | None) -> int:
    """Return where a tensor's numbers are, 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def chain_record(
    num_tokens: int, of: RankOneStep | RankOneMarginal, pi: Tensor | None, forbidden: int = -1
) -> tuple[int, ...]:
    """Return ``Chain`` of so many tokens."""
    rows, table = of.rows, of.table
    run_length = num_tokens // max(rows.numel(), 1)
    numbers = rows.data_ptr(), run_length, table.data_ptr(), len(table)
    return num_tokens, of.num_classes, *numbers, pointer(pi), of.mask_id, forbidden


def loss_record(
    of: Loss[RankOneStep],
    chain: tuple[int, ...],
    loss: Tensor | None,
    grad: Tensor | None,
    scale: float = 1.0,
    count: Tensor | None = None,
) -> tuple[Any, ...]:
    """Return ``Loss``; its gradient is multiplied by ``scale`` and divided by ``count``."""
    return (
        chain,
        of.model,
        of.logits.data_ptr(),
        of.logits.shape[-1],
        1 if of.logits.is_contiguous() else of.logits.stride(-1),
        of.x0.data_ptr(),
        of.x_t.data_ptr(),
        pointer(of.mask),
        (of.weights.vb, of.weights.ce, pointer(of.weights.tokens)),
        of.is_density,
        of.with_terms,
        scale,
        pointer(count),
        pointer(loss),
        pointer(grad),
    )


def random_record(random: Random) -> tuple[int, int, int, int]:
    """Return ``Random``."""
    return random.seeds.data_ptr(), len(random.seeds), random.step, random.position_offset


def shaping_record(shaping: Shaping) -> tuple[Any, ...]:
    """Return ``Shaping``."""
    return pointer(shaping.unconditional), *shaping[1:]


def pi_in(step: RankOneStep, dtype: torch.dtype) -> Tensor | None:
    """Return the chain's vector in the dtype that logits of a dtype are calculated in.

    The caller keeps it until a compiled module has been called with its address.
    """
    return None if step.pi is None else step.pi.to(compute_dtype(dtype))


def start_cuda(name: str, on: Tensor, *args: Any) -> None:
    """Call the CUDA module's function on the tensor's device and its current stream."""
    if on.numel() == 0:
        return
    stream = torch.cuda.current_stream(on.device).cuda_stream if on.is_cuda else 0
    with torch.cuda.device_of(on) if on.is_cuda else nullcontext():
        getattr(_compiled.cuda, name)(*args, stream)


def raise_bad_index(
    num_classes: int,
    rows: Tensor,
    table: Tensor,
    mask: Tensor | None = None,
    **tokens: Tensor,
) -> None:
    """Raise IndexError for the first index that made a kernel report a bad one."""
    for name, value in tokens.items():
        check_range(name, value if mask is None else value.where(mask, 0), 0, num_classes)
    first_time = int(table[:1, 0].isnan().any())
    check_range("t", rows, first_time, len(table))


def raise_bad_token(of: Loss[RankOneStep]) -> None:
    """Raise for the first token, of those that count, that made a loss's kernel report one."""
    counts, step = of.counts, of.step
    raise_bad_index(step.num_classes, step.rows, step.table, counts, x0=of.x0, x_t=of.x_t)
    check_data(of.x0 if counts is None else of.x0.where(counts, -1), step.forbidden)
