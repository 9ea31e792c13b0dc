"""Draws ``x_t ~ q(x_t | x_0)`` of chains of matrices on the CPU, time by time."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..._checks import check_range
from ..._compiled import cpu
from ...chains.structures import DenseMarginal, SparseMarginal
from ...records import Random
from ...reference.logspace import spread
from ..host import pointer, random_record
from .groups import check_times_of, grouped


def by_matrix(x0: Tensor, marginal: DenseMarginal, random: Random) -> Tensor:
    """Return a draw for each token, from running sums of its row of ``Qbar_t``."""
    chain, out = marginal.chain, torch.empty_like(x0)
    for time, tokens in _by_time(x0, marginal):
        cdf = chain.cdf(time)  # by its name: the cache may drop it at any time
        shape = len(tokens), chain.num_classes, x0.numel()
        at = tokens.data_ptr(), x0.data_ptr(), cdf.data_ptr()
        call = *shape, *at, random_record(random), out.data_ptr()
        cpu.dense_q_sample(call, torch.get_num_threads())
    return out


def by_jumps(x0: Tensor, marginal: SparseMarginal, random: Random) -> Tensor:
    """Return a draw for each token, jump by jump."""
    chain, out = marginal.chain, torch.empty_like(x0)
    for time, tokens in _by_time(x0, marginal):
        counts, rows = chain.jumps_cdf(time), chain.jump_rows()
        at = tokens.data_ptr(), x0.data_ptr(), counts.data_ptr(), len(counts)
        call = len(tokens), x0.numel(), *at, *map(pointer, rows), random_record(random)
        cpu.sparse_q_sample((*call, out.data_ptr()), torch.get_num_threads())
    return out


def _by_time(x0: Tensor, marginal: DenseMarginal | SparseMarginal) -> Iterator[tuple[Any, Tensor]]:
    check_times_of(marginal.chain, marginal.t, 0)
    check_range("x0", x0, 0, marginal.chain.num_classes)
    return grouped(spread(marginal.t, x0.shape).flatten())
