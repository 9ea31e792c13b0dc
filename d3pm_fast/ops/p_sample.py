"""``torch.ops.d3pm_fast.p_sample``, and ``shaped_p_sample``, which shapes rows as it reads."""

from typing import Any

import torch
from torch import Tensor

from .. import reference
from .._compiled import cpu
from .._no_law import check_drawn
from ..chains.structures import DENSE, RANK_ONE, SPARSE, RankOneStep
from ..records import AnyStep, Model, Random, Shaping, unshaped_of
from .dense import p_sample as dense
from .host import (
    chain_record,
    pointer,
    raise_bad_index,
    random_record,
    shaping_record,
    start_cuda,
)
from .kernel import triton_kernel
from .register import Operation


def fake_p_sample(
    logits: Tensor, x_t: Tensor, step: AnyStep, model: Model, random: Random
) -> Tensor:
    """Return draws without their numbers."""
    return torch.empty_like(x_t)


def _fake_shaped_p_sample(
    logits: Tensor, x_t: Tensor, step: AnyStep, model: Model, random: Random, shaping: Shaping
) -> Tensor:
    return torch.empty_like(x_t)


p_sample = Operation("p_sample", fake_p_sample)
shaped_p_sample = Operation("shaped_p_sample", _fake_shaped_p_sample)


def _on_cpu(
    logits: Tensor,
    x_t: Tensor,
    step: RankOneStep,
    model: Model,
    random: Random,
    shaping: Shaping | None = None,
) -> Tensor:
    out, num_classes = torch.empty_like(x_t), logits.shape[-1]
    shaping = shaping or unshaped_of(num_classes, step.forbidden)
    call = _record(logits, x_t, step, model, random, out)
    threads = torch.get_num_threads()
    if cpu.p_sample(str(logits.dtype), call, shaping_record(shaping), threads):
        raise_bad_index(num_classes, step.rows, step.table, x_t=x_t)
        check_drawn(out, x_t, lambda token: reference.shaped_row(token, logits, shaping))
    return out


def _on_cuda(
    logits: Tensor, x_t: Tensor, step: RankOneStep, model: Model, random: Random
) -> Tensor:
    """Return a draw for each token; -1 where an index is bad, or a row that is read no law."""
    out = torch.empty_like(x_t)
    call = _record(logits, x_t, step, model, random, out)
    start_cuda("p_sample", logits, str(logits.dtype), call)
    return out


def _record(
    logits: Tensor, x_t: Tensor, step: RankOneStep, model: Model, random: Random, out: Tensor
) -> tuple[Any, ...]:
    chain = chain_record(x_t.numel(), step, step.pi, step.forbidden)
    tensors = logits.data_ptr(), x_t.data_ptr(), out.data_ptr()
    return chain, pointer(step.pi_cdf), model, random_record(random), *tensors


p_sample.serve("reference", reference.p_sample, [RANK_ONE, DENSE, SPARSE])
p_sample.serve("cpu", _on_cpu, [RANK_ONE])
p_sample.serve("cuda", _on_cuda, [RANK_ONE])
p_sample.serve("triton", triton_kernel("rank_one.p_sample.p_sample"), [RANK_ONE])
p_sample.serve("cpu", dense.p_sample, [DENSE, SPARSE])
p_sample.serve("triton", triton_kernel("dense.p_sample.p_sample"), [DENSE, SPARSE])

shaped_p_sample.serve("cpu", _on_cpu, [RANK_ONE])
shaped_p_sample.serve("triton", triton_kernel("rank_one.p_sample.p_sample"), [RANK_ONE])
