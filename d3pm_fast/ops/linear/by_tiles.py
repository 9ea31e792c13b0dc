"""A loss by tiles of classes, each with all rows: the weight's gradient is written once.

The strokes of a loss (:mod:`d3pm_fast.ops.loss_strokes`) take a tile as a shard of the classes. So
the logits are made twice, of chains with curvature three times, and neither they nor a sum of the
weight's gradient are ever stored as a whole.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...records import LinearLoss, Shard
from ..loss_strokes import loss_gradient, loss_solve, loss_statistics, loss_sums, merged
from .kernels import Kernels
from .products import add_product, logits_into, write_weight
from .rows import Gradients, zero_gradients

MULTIPLE = 64  # of classes, which matmuls have in blocks


class Known(NamedTuple):
    """What the last stroke takes of whole rows."""

    statistics: Tensor
    sums: Tensor


def losses(of: LinearLoss[Any], kernels: Kernels) -> Tensor:
    """Return the losses of ``N`` tokens, ``(N,)``, or ``(N, 3)`` with terms."""
    of = _in_dtype_of_head(of)
    known = _known(of, _Tiles(of), kernels)
    no_logits = of.of(of.hidden[:, :0])  # whose gradient is made of nothing
    losses, _ = kernels.of(loss_gradient)(no_logits, Shard(0), *known)
    return losses  # type: ignore[no-any-return]


def losses_and_gradients(of: LinearLoss[Any], kernels: Kernels) -> tuple[Tensor, Gradients]:
    """Return the losses, and the gradients of their sum."""
    gradients, dtype = zero_gradients(of.hidden, of.head), of.hidden.dtype
    of = _in_dtype_of_head(of)
    tiles = _Tiles(of)
    known = _known(of, tiles, kernels)
    finish = kernels.of(loss_gradient)
    gradients = gradients._replace(hidden=gradients.hidden.to(known.sums.dtype))

    def on_tile(part: slice, logits: Tensor) -> Tensor:
        losses, grad = finish(of.of(logits), Shard(part.start), *known)
        _add_tile(gradients, of, part, grad)
        return losses  # type: ignore[no-any-return]

    for tile in tiles:
        losses = on_tile(*tile)
    return losses, gradients._replace(hidden=gradients.hidden.to(dtype))


def _add_tile(to: Gradients, of: LinearLoss[Any], part: slice, grad: Tensor) -> None:
    """Add the gradient of hidden by a tile, and write those of its classes."""
    if to.hidden.numel():
        add_product(to.hidden, grad, of.head.weight[part])
    if to.weight.numel():
        write_weight(to.weight[part], grad, of.hidden)
    if to.bias.numel():
        to.bias[part] = grad.sum(dim=0, dtype=to.bias.dtype)


def _in_dtype_of_head(of: LinearLoss[Any]) -> LinearLoss[Any]:
    return of._replace(hidden=of.hidden.to(of.head.dtype))


def _known(of: LinearLoss[Any], tiles: "_Tiles", kernels: Kernels) -> Known:
    """Return the first three strokes of all tiles."""
    read, solve, add_up = map(kernels.of, (loss_statistics, loss_solve, loss_sums))
    found: list[Tensor] = []
    for part, logits in tiles:
        found = [merged([*found, read(of.of(logits), Shard(part.start))])]
    (statistics,) = found
    line = solve(of.of(logits), Shard(part.start), statistics)
    sums = torch.zeros_like(line[..., :2])
    if line.device.type != "cpu" or bool((line[..., 2] != 0).any()):
        for part, logits in tiles:
            sums += add_up(of.of(logits), Shard(part.start), statistics, line)
    return Known(statistics, sums)


class _Tiles:
    """The logits ``(N, n)`` of some classes, then of the next, as often as they are gone through.

    There is room for them and for their gradient within the budget.
    """

    def __init__(self, of: LinearLoss[Any]) -> None:
        self._hidden, self._head = of.hidden, of.head
        num_rows, num_classes = len(of.hidden), len(of.head.weight)
        most = of.head.memory_budget // max(2 * num_rows * of.head.dtype.itemsize, 1)
        self._size = min(max(most // MULTIPLE * MULTIPLE, MULTIPLE), num_classes)
        self._room = of.hidden.new_empty(num_rows * self._size)

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        head, num_rows = self._head, len(self._hidden)
        for start in range(0, len(head.weight), self._size):
            part = slice(start, min(start + self._size, len(head.weight)))
            weight, bias = head.weight[part], None if head.bias is None else head.bias[part]
            logits = self._room[: num_rows * len(weight)].view(num_rows, len(weight))
            logits_into(logits, self._hidden, weight, bias)
            yield part, logits
