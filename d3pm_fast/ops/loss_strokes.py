"""The loss in four strokes, for logits that are made or held in shards of their classes.

:mod:`d3pm_fast.ops.loss` is their composition on whole rows. The classes ``x_0``, ``x_t`` and the
mask are apart from the rest of a row, in the notation of ``csrc/loss_row.h``:

1. ``loss_statistics(of, shard)``, ``(B, *S, 5)``: the largest logit, the sum of
   ``e_j = exp(logit_j - largest)`` over the rest, and the logits of ``x_0``, ``x_t`` and the mask;
   -inf for those of another shard, and for a mask that is ``x_0`` or ``x_t``.
2. ``loss_solve(of, shard, statistics)``, ``(B, *S, 3)``, of the statistics of the whole row: the
   ratio, shift and slope of ``1 + g_j = ratio + slope e_j / pi_j``, ``g_j = shift + ...``; 1, 1 and
   0 where the loss needs no sums.
3. ``loss_sums(of, shard, statistics, line)``, ``(B, *S, 2)``: the sums over the rest of
   ``pi_j phi(g_j)`` and of ``e_j g_j / (1 + g_j)``; 0 where the loss needs none, and there the
   logits are not read.
4. ``loss_gradient(of, shard, statistics, sums)``, of the sums over the whole row: each token's
   loss, with its terms where they are wanted, and the gradient of the shard's logits.

The numbers are float64 for float64 logits, float32 for all others. The chain, ``x0`` and ``x_t``
are those of the whole row in every shard. Tokens whose loss is known without their row have 0 and
-inf, 1, 1 and 0, and 0.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._compiled import cpu
from ..chains.structures import RANK_ONE, RankOneStep
from ..records import Loss, Shard
from ..reference.logspace import compute_dtype
from .host import chain_record, loss_record, pi_in, pointer, raise_bad_token
from .kernel import triton_kernel
from .register import Operation


def merged(statistics: Sequence[Tensor]) -> Tensor:
    """Return the statistics of whole rows from those of their shards, in the order of these."""
    parts = torch.stack(tuple(statistics))
    top = parts[..., 0].amax(dim=0)
    shares = (parts[..., 0] - top).exp().where(parts[..., 0] > -torch.inf, 0)
    e_rest = (parts[..., 1].where(shares > 0, 0) * shares).sum(dim=0)
    return torch.stack((top, e_rest, *parts[..., 2:].amax(dim=0).unbind(-1)), dim=-1)


def _numbers(of: Loss[Any], count: int) -> Tensor:
    return of.logits.new_empty(*of.x0.shape, count, dtype=compute_dtype(of.logits.dtype))


def _fake_statistics(of: Loss[Any], shard: Shard) -> Tensor:
    return _numbers(of, 5)


def _fake_solve(of: Loss[Any], shard: Shard, statistics: Tensor) -> Tensor:
    return _numbers(of, 3)


def _fake_sums(of: Loss[Any], shard: Shard, statistics: Tensor, line: Tensor) -> Tensor:
    return _numbers(of, 2)


def _fake_gradient(
    of: Loss[Any], shard: Shard, statistics: Tensor, sums: Tensor
) -> tuple[Tensor, Tensor]:
    loss = _numbers(of, 3) if of.with_terms else _numbers(of, 1).squeeze(-1)
    return loss, torch.empty_like(of.logits)


loss_statistics = Operation("loss_statistics", _fake_statistics)
loss_solve = Operation("loss_solve", _fake_solve)
loss_sums = Operation("loss_sums", _fake_sums)
loss_gradient = Operation("loss_gradient", _fake_gradient)


def _cpu_statistics(of: Loss[RankOneStep], shard: Shard) -> Tensor:
    statistics = _fake_statistics(of, shard)
    _run_on_cpu("loss_statistics", of, shard, statistics=statistics)
    return statistics


def _cpu_solve(of: Loss[RankOneStep], shard: Shard, statistics: Tensor) -> Tensor:
    line = _fake_solve(of, shard, statistics)
    _run_on_cpu("loss_solve", of, shard, statistics=statistics, line=line)
    return line


def _cpu_sums(of: Loss[RankOneStep], shard: Shard, statistics: Tensor, line: Tensor) -> Tensor:
    sums = _fake_sums(of, shard, statistics, line)
    _run_on_cpu("loss_sums", of, shard, statistics=statistics, line=line, sums=sums)
    return sums


def _cpu_gradient(
    of: Loss[RankOneStep], shard: Shard, statistics: Tensor, sums: Tensor
) -> tuple[Tensor, Tensor]:
    made = _fake_gradient(of, shard, statistics, sums)
    _run_on_cpu("loss_gradient", of, shard, *made, statistics=statistics, sums=sums)
    return made


def _run_on_cpu(
    name: str,
    of: Loss[RankOneStep],
    shard: Shard,
    loss: Tensor | None = None,
    grad: Tensor | None = None,
    *,
    statistics: Tensor,
    line: Tensor | None = None,
    sums: Tensor | None = None,
) -> None:
    pi = pi_in(of.step, of.logits.dtype)
    chain = chain_record(of.x0.numel(), of.step, pi, of.step.forbidden)
    call = loss_record(of, chain, loss, grad)
    numbers = statistics.data_ptr(), pointer(line), pointer(sums)
    strokes = call, shard.first, *numbers
    if getattr(cpu, name)(str(of.logits.dtype), strokes, torch.get_num_threads()):
        raise_bad_token(of)


loss_statistics.serve("cpu", _cpu_statistics, [RANK_ONE])
loss_statistics.serve("triton", triton_kernel("rank_one.loss_strokes.loss_statistics"), [RANK_ONE])
loss_solve.serve("cpu", _cpu_solve, [RANK_ONE])
loss_solve.serve("triton", triton_kernel("rank_one.loss_strokes.loss_solve"), [RANK_ONE])
loss_sums.serve("cpu", _cpu_sums, [RANK_ONE])
loss_sums.serve("triton", triton_kernel("rank_one.loss_strokes.loss_sums"), [RANK_ONE])
loss_gradient.serve("cpu", _cpu_gradient, [RANK_ONE])
loss_gradient.serve("triton", triton_kernel("rank_one.loss_strokes.loss_gradient"), [RANK_ONE])
