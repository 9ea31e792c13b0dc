"""The tokens of a call, by groups of one step, in chunks that stay in the cache."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..._checks import check_interval, check_range
from ...chains.dense import DenseStep
from ...chains.sparse import SparseStep
from ...chains.structures import MatrixStep
from ...reference.logspace import compute_dtype, spread
from ..host import pointer

CHUNK_BYTES = 1 << 19  # of each of three rooms, which stay in the second-level cache


def check_times_of(chain: Any, t: Tensor, first: int) -> None:
    """Raise IndexError for a time that the chain does not have, 0 or above it from ``first`` on."""
    if chain.has_steps:
        check_range("t", t, first, chain.num_steps + 1)
    else:
        check_interval("t", t, includes_zero=first == 0)


def grouped(keys: Tensor, mask: Tensor | None = None) -> Iterator[tuple[Any, Tensor]]:
    """Yield each of the keys ``(N,)`` that occurs where the mask is True, and its places."""
    places = None if mask is None else mask.flatten().nonzero().squeeze(-1)
    found, order = (keys if places is None else keys[places]).sort(stable=True)
    tokens = order if places is None else places[order]
    values, counts = found.unique_consecutive(return_counts=True)
    yield from zip(values.tolist(), tokens.split(counts.tolist()), strict=True)


class Chunk(NamedTuple):
    """Some tokens of one step, and what the kernels know of them and share about them."""

    tokens: Tensor
    s: float
    t: float
    step: DenseStep | SparseStep
    rows: tuple[Any, ...]
    v: Tensor
    f: Tensor
    g: Tensor
    inexact: Tensor


class StepGroups:
    """The tokens of a call that count, chunk by chunk of one step, gone through once.

    ``anchor`` is x_0, or x_t where there is none, see ``DenseRows`` in ``csrc/cpu/dense_calls.h``;
    it is joined where nothing ``splits`` it from the others. What ``draws`` needs p as a whole,
    not each of its entries. ``factors`` are those of the losses of tokens, none of them 0.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        num_classes: int,
        anchor: Tensor,
        x_t: Tensor,
        step: MatrixStep,
        mask: Tensor | None = None,
        factors: Tensor | None = None,
        *,
        splits: bool = False,
        draws: bool = False,
    ) -> None:
        self.splits, self.draws = splits, draws
        self.dtype = str(dtype)
        self.real = compute_dtype(dtype)
        self.num_classes = num_classes
        self.anchor, self.x_t, self.mask, self.factors = anchor, x_t, mask, factors
        self.t, self.s = step.t, step.t - 1 if step.s is None else step.s
        self.chain = step.chain
        self.inexact: list[Tensor] = []
        check_times_of(self.chain, self.t, 1)
        for name, tokens in (("x0", anchor), ("x_t", x_t))[anchor is x_t :]:
            check_range(name, tokens if mask is None else tokens.where(mask, 0), 0, num_classes)

    def __iter__(self) -> Iterator[Chunk]:
        """Yield the chunks; inexact rows of one are noted when the next is asked for."""
        size = max(CHUNK_BYTES // (self.num_classes * self.real.itemsize), 1)
        size = min(size, self.x_t.numel())
        sums = torch.empty(size, 3, dtype=self.real, device="cpu")
        rooms: dict[torch.dtype, Tensor] = {}  # made once: fresh memory is slow to touch
        for s, t, tokens in self._groups():
            step = self.chain.step(s, t, self.real, rough=self.draws)
            dtype = step.form.dtype
            if dtype not in rooms:
                rooms[dtype] = torch.empty(3, size, self.num_classes, dtype=dtype, device="cpu")
            for part in tokens.split(size):
                n = len(part)
                rows = self._rows(part, step, sums)
                inexact = torch.zeros(n, dtype=torch.bool, device="cpu")
                v, f, g = rooms[dtype][:, :n].unbind()
                yield Chunk(part, s, t, step, rows, v, f, g, inexact)
                if bool(inexact.any()):
                    self.inexact.append(part[inexact])

    def of(self, tokens: Tensor, chunk: Chunk) -> Tensor | None:
        """Return a chunk's part of the tokens where tables are made for them alone."""
        return tokens.flatten()[chunk.tokens] if self.chain.by_row else None

    def log_tilt(self, chunk: Chunk, posterior_mean: bool) -> Tensor | None:
        """Return ``-log Qbar_t[:, x_t]`` by x_t; None for the joint model."""
        if not posterior_mean:
            return None
        made: Tensor = self.chain.log_tilt(chunk.t, self.of(self.x_t, chunk))
        return made

    def never(self, x0: Tensor, chunk: Chunk) -> Tensor:
        """Return which of a chunk's tokens the chain cannot have led from x_0 to x_t."""
        log_reach = self.chain.log_columns(0, chunk.t, self.of(self.x_t, chunk))
        column = self.x_t.flatten()[chunk.tokens]
        if self.chain.by_row:
            column = torch.arange(len(column), device="cpu")
        found: Tensor = log_reach[column, x0.flatten()[chunk.tokens]] == -torch.inf
        return found

    def tables(self, chunk: Chunk) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return ``Q_{s->t}`` by x_t, ``Qbar_s`` by the anchor, and the spans of the former."""
        anchor = self.of(self.anchor, chunk) if self.splits else None
        made: tuple[Tensor, Tensor | None, Tensor]
        made = chunk.step.tables(self.of(self.x_t, chunk), anchor)
        return made

    def _groups(self) -> Iterator[tuple[float, float, Tensor]]:
        times, which = torch.stack([self.s, self.t]).unique(return_inverse=True)
        s, t = which
        key = spread(s * len(times) + t, self.x_t.shape).flatten()
        times = times.tolist()
        for value, tokens in grouped(key, self.mask):
            s, t = divmod(value, len(times))
            yield times[s], times[t], tokens

    def _rows(self, tokens: Tensor, step: DenseStep | SparseStep, sums: Tensor) -> tuple[Any, ...]:
        return (
            len(tokens),
            self.num_classes,
            self.x_t.numel(),
            tokens.data_ptr(),
            self.anchor.data_ptr(),
            self.x_t.data_ptr(),
            step.form.dtype != self.real,
            step.form.is_centred,
            not (self.splits or step.form.is_centred),
            self.chain.by_row,
            sums.data_ptr(),
            pointer(self.factors),
        )
