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
from .products import add_product, logits_into, write_weight
from .rows import Gradients
from .tokens import at_rows, rows_with_loss

MULTIPLE = 64  # of classes, which matmuls have in blocks


class Known(NamedTuple):
    """What the last stroke takes of whole rows."""

    statistics: Tensor
    sums: Tensor


def write_losses(of: LinearLoss[Any], losses: Tensor, implementation: str, structure: str) -> None:
    """Write the losses of ``N`` tokens, ``(N,)``, or ``(N, 3)`` with terms; 0 is there before."""
    rows, some = _with_loss(of)
    tiles = _Tiles(some)
    known = _known(some, tiles, implementation, structure)
    finish = loss_gradient.kernel(implementation, structure)
    no_logits = some.of(some.hidden[:, :0])  # whose gradient is made of nothing
    losses[rows], _ = finish(no_logits, Shard(0), *known)


def write_gradients(
    of: LinearLoss[Any],
    losses: Tensor,
    gradients: Gradients,
    implementation: str,
    structure: str,
) -> None:
    """Write the losses, and the gradients of their sum; 0 is there before."""
    rows, some = _with_loss(of)
    tiles = _Tiles(some)
    known = _known(some, tiles, implementation, structure)
    finish = loss_gradient.kernel(implementation, structure)
    total = torch.zeros_like(some.hidden, dtype=known.sums.dtype)
    of_tiles = gradients._replace(hidden=total if gradients.hidden.numel() else gradients.hidden)

    def on_tile(part: slice, logits: Tensor) -> None:
        losses[rows], grad = finish(some.of(logits), Shard(part.start), *known)
        _add_tile(of_tiles, some, part, grad)

    for part, logits in tiles:
        on_tile(part, logits)
    if gradients.hidden.numel():
        gradients.hidden[rows] = total.to(gradients.hidden.dtype)


def _add_tile(to: Gradients, of: LinearLoss[Any], part: slice, grad: Tensor) -> None:
    """Add the gradient of hidden by a tile, and write those of its classes."""
    if to.hidden.numel():
        add_product(to.hidden, grad, of.head.weight[part])
    if to.weight.numel():
        write_weight(to.weight[part], grad, of.hidden)
    if to.bias.numel():
        to.bias[part] = grad.sum(dim=0, dtype=to.bias.dtype)


def _with_loss(of: LinearLoss[Any]) -> tuple[Tensor | slice, LinearLoss[Any]]:
    """Return which tokens may have a loss, and theirs."""
    rows, counts = rows_with_loss(of), of.counts
    hidden = of.hidden.to(of.head.dtype)
    if rows is not None:
        return rows, at_rows(of._replace(hidden=hidden[rows]), rows)
    if counts is not None:
        hidden = hidden.where(counts.unsqueeze(-1), 0)
    return slice(None), of._replace(hidden=hidden)


def _known(of: LinearLoss[Any], tiles: "_Tiles", implementation: str, structure: str) -> Known:
    """Return the first three strokes of all tiles."""
    read, solve, add_up = (
        stroke.kernel(implementation, structure)
        for stroke in (loss_statistics, loss_solve, loss_sums)
    )
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
