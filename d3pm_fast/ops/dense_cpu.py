"""The operations on chains of matrices on the CPU, on groups of tokens of one step.

``logits -> v -> v Qbar_s -> r -> r Qbar_s^T -> gradient``, in chunks that stay in the cache. The
products are PyTorch's, what is between them is one kernel
each (``csrc/cpu/dense_target.h``). A kernel reports rows whose digits the group's arithmetic does
not keep; they are done again in float64, and where that is not enough, in log space.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import reference
from .._checks import check_drawn, check_range
from .._compiled import cpu
from ..chains import SparseTransition
from ..chains.dense import DenseStep
from ..chains.handles import of_handle
from ..chains.sparse import SparseStep
from ..reference.draws import NONE, draw_row
from ..reference.logspace import compute_dtype, spread
from ..reference.philox import uniforms
from .library import pointer

CHUNK_BYTES = 1 << 19  # of each of three rooms, which stay in the second-level cache
LOG_SPACE_BYTES = 1 << 26


def grouped(keys: Tensor, mask: Tensor | None = None) -> Iterator[tuple[int, Tensor]]:
    """Yield each of the keys ``(N,)`` that occurs where the mask is True, and its places."""
    places = None if mask is None else mask.flatten().nonzero().squeeze(-1)
    found, order = (keys if places is None else keys[places]).sort(stable=True)
    tokens = order if places is None else places[order]
    values, counts = found.unique_consecutive(return_counts=True)
    yield from zip(values.tolist(), tokens.split(counts.tolist()), strict=True)


class Chunk(NamedTuple):
    """Some tokens of one step, and what the kernels know of them and share about them."""

    tokens: Tensor
    s: int
    t: int
    step: DenseStep | SparseStep
    rows: tuple[Any, ...]
    v: Tensor
    f: Tensor
    g: Tensor
    doubtful: Tensor


class Pass:
    """One pass over the tokens of a call that count, chunk by chunk of one step.

    ``anchor`` is x_0, or x_t where there is none, see ``DenseRows`` in ``csrc/cpu/dense_calls.h``;
    it is joined where nothing ``splits`` it from the others. What ``draws`` needs p as a whole,
    not each of its entries.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        num_classes: int,
        anchor: Tensor,
        x_t: Tensor,
        chain: tuple[Tensor, Tensor | None, int],
        mask: Tensor | None = None,
        *,
        splits: bool = False,
        draws: bool = False,
    ) -> None:
        self.splits, self.draws = splits, draws
        self.dtype = str(dtype)
        self.real = compute_dtype(dtype)
        self.num_classes = num_classes
        self.anchor, self.x_t, self.mask = anchor, x_t, mask
        self.t, s, handle = chain
        self.s = self.t - 1 if s is None else s
        self.transition = of_handle(handle)
        self.doubted: list[Tensor] = []
        check_range("t", self.t, 1, self.transition.num_steps + 1)
        for name, tokens in (("x0", anchor), ("x_t", x_t))[anchor is x_t :]:
            check_range(name, tokens if mask is None else tokens.where(mask, 0), 0, num_classes)

    def __iter__(self) -> Iterator[Chunk]:
        """Yield the chunks; what a kernel doubts of one is noted when the next is asked for."""
        size = max(CHUNK_BYTES // (self.num_classes * self.real.itemsize), 1)
        size = min(size, self.x_t.numel())
        sums = torch.empty(size, 3, dtype=self.real, device="cpu")
        rooms: dict[torch.dtype, Tensor] = {}  # made once: fresh memory is slow to touch
        for s, t, tokens in self._groups():
            step = self.transition.step(s, t, self.real, rough=self.draws)
            dtype = step.form.dtype
            if dtype not in rooms:
                rooms[dtype] = torch.empty(3, size, self.num_classes, dtype=dtype, device="cpu")
            for part in tokens.split(size):
                n = len(part)
                rows = self._rows(part, step, sums)
                doubtful = torch.zeros(n, dtype=torch.bool, device="cpu")
                v, f, g = rooms[dtype][:, :n].unbind()
                yield Chunk(part, s, t, step, rows, v, f, g, doubtful)
                if bool(doubtful.any()):
                    self.doubted.append(part[doubtful])

    def of(self, tokens: Tensor, chunk: Chunk) -> Tensor | None:
        """Return a chunk's part of the tokens where tables are made for them alone."""
        return tokens.flatten()[chunk.tokens] if self.transition.by_row else None

    def log_tilt(self, chunk: Chunk, posterior_mean: bool) -> Tensor | None:
        """Return ``-log Qbar_t[:, x_t]`` by x_t; None for the joint model."""
        if not posterior_mean:
            return None
        made: Tensor = self.transition.log_tilt(chunk.t, self.of(self.x_t, chunk))
        return made

    def never(self, x0: Tensor, chunk: Chunk) -> Tensor:
        """Return which of a chunk's tokens the chain cannot have led from x_0 to x_t."""
        log_reach = self.transition.log_columns(0, chunk.t, self.of(self.x_t, chunk))
        column = self.x_t.flatten()[chunk.tokens]
        if self.transition.by_row:
            column = torch.arange(len(column), device="cpu")
        found: Tensor = log_reach[column, x0.flatten()[chunk.tokens]] == -torch.inf
        return found

    def tables(self, chunk: Chunk) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return ``Q_{s->t}`` by x_t, ``Qbar_s`` by the anchor, and the spans of the former."""
        anchor = self.of(self.anchor, chunk) if self.splits else None
        made: tuple[Tensor, Tensor | None, Tensor]
        made = chunk.step.tables(self.of(self.x_t, chunk), anchor)
        return made

    def _groups(self) -> Iterator[tuple[int, int, Tensor]]:
        base = self.transition.num_steps + 1
        key = spread(self.s * base + self.t, self.x_t.shape).flatten()
        for value, tokens in grouped(key, self.mask):
            yield *divmod(value, base), tokens

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
            self.transition.by_row,
            sums.data_ptr(),
            torch.get_num_threads(),
        )


def _run_loss(
    grad: Tensor | None,
    logits: Tensor,
    x0: Tensor,
    mask: Tensor | None,
    x_t: Tensor,
    t: Tensor,
    s: Tensor | None,
    handle: int,
    posterior_mean: bool,
    direct: bool,
    vb_weight: float,
    ce_weight: float,
    reduction: str,
    late: bool = False,
) -> Tensor:
    token_loss = torch.zeros(x0.shape, dtype=compute_dtype(logits.dtype), device="cpu")
    if grad is not None and mask is not None:
        grad.zero_()
    count = x0.numel() if mask is None else int(mask.sum())
    scale = 1 / max(count, 1) if reduction == "mean" and not late else 1.0
    run = Pass(logits.dtype, logits.shape[-1], x0, x_t, (t, s, handle), mask, splits=True)
    read, loss_at, grad_at = logits.data_ptr(), token_loss.data_ptr(), pointer(grad)
    for chunk in run:
        common = run.dtype, chunk.rows
        form, v, f = chunk.step.form, chunk.v.data_ptr(), chunk.f.data_ptr()
        is_direct = direct and chunk.s == 0
        ce = ce_weight + (vb_weight if is_direct else 0.0)
        tilt = run.log_tilt(chunk, posterior_mean and not is_direct)
        cpu.dense_predict(*common, read, pointer(tilt), v, ce, loss_at)
        diverges = vb_weight != 0 and not is_direct
        if diverges:
            form.apply(chunk.v, chunk.f)
            tables = run.tables(chunk)
            doubtful = chunk.doubtful.data_ptr()
            at = map(pointer, tables)
            cpu.dense_loss(*common, *at, f, vb_weight, form.error, loss_at, doubtful)
        if grad_at:
            if diverges:
                form.apply_transposed(chunk.f, chunk.g)
            pull = chunk.g.data_ptr() if diverges else 0
            cpu.dense_gradient(*common, read, v, pull, ce, scale, grad_at)
        if not diverges:
            never = chunk.tokens[run.never(x0, chunk)]
            token_loss.view(-1)[never] = torch.nan
            if grad is not None:
                grad.flatten(0, -2)[never] = torch.nan
    if run.doubted:
        again = Again(run, logits)
        losses, gradients = again.loss(x0, (posterior_mean, direct, vb_weight, ce_weight))
        token_loss.view(-1)[again.tokens] = losses.to(token_loss.dtype)
        if grad is not None:
            grad.flatten(0, -2)[again.tokens] = (gradients * scale).to(grad.dtype)
    if reduction == "none":
        return token_loss
    total = token_loss.sum(dtype=torch.float64)
    return (total / count if reduction == "mean" else total).to(token_loss.dtype)


def _run_p_posterior(
    logits: Tensor,
    upstream: Tensor | None,
    x_t: Tensor,
    t: Tensor,
    s: Tensor | None,
    handle: int,
    posterior_mean: bool,
    direct: bool,
) -> Tensor:
    out = torch.empty_like(logits)
    run = Pass(logits.dtype, logits.shape[-1], x_t, x_t, (t, s, handle))
    read, write = logits.data_ptr(), out.data_ptr()
    for chunk in run:
        if direct and chunk.s == 0:
            _direct_log_p(out, logits, upstream, chunk.tokens)
            continue
        common = run.dtype, chunk.rows
        form, v, f = chunk.step.form, chunk.v.data_ptr(), chunk.f.data_ptr()
        tilt = run.log_tilt(chunk, posterior_mean)
        cpu.dense_predict(*common, read, pointer(tilt), v, 0.0, 0)
        form.apply(chunk.v, chunk.f)
        columns, rows, _ = run.tables(chunk)
        log_columns = run.transition.log_columns(chunk.s, chunk.t, run.of(x_t, chunk))
        at = map(pointer, (columns, rows, log_columns))
        doubtful = chunk.doubtful.data_ptr()
        cpu.dense_posterior(*common, *at, f, form.error, pointer(upstream), write, doubtful)
        if upstream is not None:
            form.apply_transposed(chunk.f, chunk.g)
            cpu.dense_gradient(*common, read, v, chunk.g.data_ptr(), 0.0, 1.0, write)
    if run.doubted:
        again = Again(run, logits)
        model = posterior_mean, direct
        rows = again.log_p(model) if upstream is None else again.log_p_grad(upstream, model)
        out.flatten(0, -2)[again.tokens] = rows.to(out.dtype)
    return out


def _direct_log_p(out: Tensor, logits: Tensor, upstream: Tensor | None, tokens: Tensor) -> None:
    """Write ``log softmax(logits)`` of some tokens, or its gradient."""
    real = compute_dtype(logits.dtype)
    rows = torch.log_softmax(logits.flatten(0, -2)[tokens].to(real), dim=-1)
    if upstream is not None:
        pull = upstream.flatten(0, -2)[tokens].to(real)
        rows = pull - rows.exp() * pull.sum(dim=-1, keepdim=True)
    out.flatten(0, -2)[tokens] = rows.to(out.dtype)


class Again:
    """The tokens that a pass has doubted: in float64, and if that was it, in log space."""

    def __init__(self, run: Pass, logits: Tensor) -> None:
        self.tokens = torch.cat(run.doubted)
        self.was_float64 = logits.dtype == torch.float64
        self.logits = logits.flatten(0, -2)[self.tokens].double()
        self.x_t = run.x_t.flatten()[self.tokens]
        times = (spread(time, run.x_t.shape).flatten()[self.tokens] for time in (run.t, run.s))
        self.t, self.s = times
        self.transition = run.transition

    def loss(self, x0: Tensor, model: tuple[bool, bool, float, float]) -> tuple[Tensor, Tensor]:
        """Return the loss ``(n,)`` and its gradient ``(n, K)``, float64."""
        x0 = x0.flatten()[self.tokens]
        if not self.was_float64:
            chain = self.t, self.s, self.transition.handle
            return loss_and_grad(self.logits, x0, None, self.x_t, *chain, *model, "none", False)
        losses, gradients = [], []
        for part, leaf, make_step in self._in_log_space():
            value = reference.loss(leaf, x0[part], None, self.x_t[part], make_step, *model, "none")
            losses.append(value.detach())
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
            gradients.append(gradient.where(value.isfinite().unsqueeze(-1), torch.nan))
        return torch.cat(losses), torch.cat(gradients)

    def log_p(self, model: tuple[bool, bool]) -> Tensor:
        """Return ``log p(x_s | x_t)``, float64 ``(n, K)``."""
        if not self.was_float64:
            chain = self.t, self.s, self.transition.handle
            return _run_p_posterior(self.logits, None, self.x_t, *chain, *model)
        parts = self._in_log_space()
        rows = [reference.p_posterior(leaf, self.x_t[n], make, *model) for n, leaf, make in parts]
        return torch.cat(rows).detach()

    def log_p_grad(self, upstream: Tensor, model: tuple[bool, bool]) -> Tensor:
        """Return the gradient of ``log p(x_s | x_t)``, float64 ``(n, K)``."""
        upstream = upstream.flatten(0, -2)[self.tokens].double()
        if not self.was_float64:
            chain = self.t, self.s, self.transition.handle
            return _run_p_posterior(self.logits, upstream, self.x_t, *chain, *model)
        gradients: list[Tensor] = []
        for part, leaf, make_step in self._in_log_space():
            log_p = reference.p_posterior(leaf, self.x_t[part], make_step, *model)
            pull = upstream[part].where(log_p > -torch.inf, 0)
            gradients += torch.autograd.grad(log_p, leaf, pull)
        return torch.cat(gradients)

    def draw(self, model: tuple[bool, bool], seeds: Tensor, step: int, num_tokens: int) -> Tensor:
        """Return x_s, int64 ``(n,)``, from the numbers of these tokens.

        The posterior's own pass takes all of a chain's digits, where that of draws is rough.
        """
        _, draw = uniforms(seeds, step, num_tokens)
        chain = self.t, self.s, self.transition.handle
        p = _run_p_posterior(self.logits, None, self.x_t, *chain, *model).exp()
        drawn = draw_row(p, draw[self.tokens])
        _, direct = model
        without = (drawn == NONE) & ~((self.s == 0) & direct)
        drawn[without] = drawn[without].where(self._are_led_to(without), self.x_t[without])
        return drawn

    def _are_led_to(self, tokens: Tensor) -> Tensor:
        """Return of which tokens x_t is one that the chain itself leads a class to."""
        steps, which = torch.stack([self.s, self.t, self.x_t])[:, tokens].unique(
            dim=1, return_inverse=True
        )
        found = torch.zeros(steps.shape[1], dtype=torch.bool)
        for u, (s, t, x_t) in enumerate(steps.T.tolist()):
            only = torch.tensor([x_t]) if self.transition.by_row else None
            columns = self.transition.log_columns(s, t, only)
            found[u] = (columns[x_t if only is None else 0] > -torch.inf).any()
        return found[which]

    def _in_log_space(self) -> Iterator[tuple[slice, Tensor, reference.MakeStep]]:
        """Yield slices of few tokens, their logits as a leaf, and what makes their steps."""
        size = max(LOG_SPACE_BYTES // (8 * self.transition.num_classes**2), 1)
        with torch.enable_grad():
            for first in range(0, len(self.tokens), size):
                part = slice(first, first + size)
                (make_step,) = reference.chain(self.transition, self.t[part], self.s[part])
                yield part, self.logits[part].detach().requires_grad_(), make_step


def loss(*args: Any) -> Tensor:
    """Return the loss, of each token or their sum or mean."""
    return _run_loss(None, *args)


def loss_and_grad(logits: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    """Return the loss and its gradient."""
    grad = torch.empty_like(logits)
    return _run_loss(grad, logits, *args), grad


def p_posterior(logits: Tensor, *args: Any) -> Tensor:
    """Return log p(x_s | x_t)."""
    return _run_p_posterior(logits, None, *args)


def p_posterior_grad(*args: Any) -> Tensor:
    """Return the gradient of log p(x_s | x_t) with respect to the logits."""
    return _run_p_posterior(*args)


def q_posterior(
    x0: Tensor,
    x_t: Tensor,
    t: Tensor,
    s: Tensor | None,
    handle: int,
    num_classes: int,
    dtype: torch.dtype,
) -> Tensor:
    """Return log q(x_s | x_t, x_0)."""
    out = torch.empty(*x0.shape, num_classes, dtype=dtype, device="cpu")
    run = Pass(dtype, num_classes, x0, x_t, (t, s, handle))
    for chunk in run:
        classes = run.of(x_t, chunk)
        tables = (
            run.transition.log_columns(chunk.s, chunk.t, classes),
            run.transition.log_rows(chunk.s, run.of(x0, chunk)),
            run.transition.log_columns(0, chunk.t, classes),
        )
        cpu.dense_q_posterior(run.dtype, chunk.rows, *map(pointer, tables), out.data_ptr())
    return out


def q_sample(x: Tensor, t: Tensor, handle: int, seeds: Tensor, step: int) -> Tensor:
    """Return a draw for each token."""
    transition = of_handle(handle)
    check_range("t", t, 0, transition.num_steps + 1)
    check_range("x0", x, 0, transition.num_classes)
    out = torch.empty_like(x)
    for time, tokens in grouped(spread(t, x.shape).flatten()):
        rest = seeds.data_ptr(), len(seeds), step, out.data_ptr(), torch.get_num_threads()
        at = x.numel(), tokens.data_ptr(), x.data_ptr()
        if isinstance(transition, SparseTransition):
            counts, rows = transition.jumps_cdf(time), transition.jump_rows()
            where = counts.data_ptr(), len(counts), *map(pointer, rows)
            cpu.sparse_q_sample(len(tokens), *at, *where, *rest)
        else:
            cdf = transition.cdf(time)  # by its name: the cache may drop it at any time
            cpu.dense_q_sample(len(tokens), transition.num_classes, *at, cdf.data_ptr(), *rest)
    return out


def p_sample(
    logits: Tensor,
    x_t: Tensor,
    t: Tensor,
    s: Tensor | None,
    handle: int,
    posterior_mean: bool,
    direct: bool,
    seeds: Tensor,
    step: int,
) -> Tensor:
    """Return a draw for each token."""
    out = torch.empty_like(x_t)
    run = Pass(logits.dtype, logits.shape[-1], x_t, x_t, (t, s, handle), draws=True)
    random = seeds.data_ptr(), len(seeds), step
    for chunk in run:
        common = run.dtype, chunk.rows
        form, v, f = chunk.step.form, chunk.v, chunk.f
        is_direct = direct and chunk.s == 0
        tilt = run.log_tilt(chunk, posterior_mean and not is_direct)
        cpu.dense_predict(*common, logits.data_ptr(), pointer(tilt), v.data_ptr(), 0.0, 0)
        tables: tuple[Tensor | None, ...] = None, None, v
        if not is_direct:
            form.apply(v, f)
            tables = *run.tables(chunk)[:2], f
        doubtful = chunk.doubtful.data_ptr()
        at = map(pointer, tables)
        cpu.dense_p_sample(*common, *at, form.error, *random, out.data_ptr(), doubtful)
    if run.doubted:
        again = Again(run, logits)
        drawn = again.draw((posterior_mean, direct), seeds, step, x_t.numel())
        out.view(-1)[again.tokens] = drawn
        check_drawn(out, x_t, logits.__getitem__)
    return out
