"""``torch.ops.d3pm_fast.q_sample``."""

from typing import Any

import torch
from torch import Tensor

from .. import reference
from .._compiled import cpu
from ..chains.structures import DENSE, RANK_ONE, SPARSE, RankOneMarginal
from ..records import AnyMarginal, Random
from .dense import q_sample as dense
from .host import chain_record, pointer, raise_bad_index, random_record, start_cuda
from .kernel import triton_kernel
from .register import Operation


def _fake_q_sample(x0: Tensor, marginal: AnyMarginal, random: Random) -> Tensor:
    return torch.empty_like(x0)


q_sample = Operation("q_sample", _fake_q_sample)


def _on_cpu(x0: Tensor, marginal: RankOneMarginal, random: Random) -> Tensor:
    out = torch.empty_like(x0)
    if cpu.q_sample(_record(x0, marginal, random, out), torch.get_num_threads()):
        raise_bad_index(marginal.num_classes, marginal.rows, marginal.table, x0=x0)
    return out


def _on_cuda(x0: Tensor, marginal: RankOneMarginal, random: Random) -> Tensor:
    """Return a draw for each token; -1 where an index is bad."""
    out = torch.empty_like(x0)
    start_cuda("q_sample", x0, _record(x0, marginal, random, out))
    return out


def _record(x0: Tensor, marginal: RankOneMarginal, random: Random, out: Tensor) -> tuple[Any, ...]:
    chain = chain_record(x0.numel(), marginal, None)
    cdf = pointer(marginal.pi_cdf)
    return chain, cdf, random_record(random), x0.data_ptr(), out.data_ptr()


q_sample.serve("reference", reference.q_sample, [RANK_ONE, DENSE, SPARSE])
q_sample.serve("cpu", _on_cpu, [RANK_ONE])
q_sample.serve("cuda", _on_cuda, [RANK_ONE])
q_sample.serve("triton", triton_kernel("rank_one.q_sample.q_sample"), [RANK_ONE])
q_sample.serve("cpu", dense.by_matrix, [DENSE])
q_sample.serve("cpu", dense.by_jumps, [SPARSE])
q_sample.serve("triton", triton_kernel("dense.q_sample.by_matrix"), [DENSE])
q_sample.serve("triton", triton_kernel("dense.q_sample.by_jumps"), [SPARSE])
