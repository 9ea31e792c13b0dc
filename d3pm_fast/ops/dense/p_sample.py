"""Draws ``x_s ~ p(x_s | x_t)`` of chains of matrices on the CPU."""

import torch
from torch import Tensor

from ..._compiled import cpu
from ..._no_law import check_drawn
from ...chains.structures import MatrixStep
from ...records import Model, Random
from ...reference.draws import NONE, draw_row
from ...reference.philox import uniforms_of
from ..host import pointer, random_record
from .groups import StepGroups
from .posterior import p_posterior
from .recompute import Recompute


def p_sample(logits: Tensor, x_t: Tensor, step: MatrixStep, model: Model, random: Random) -> Tensor:
    """Return a draw for each token."""
    out = torch.empty_like(x_t)
    run = StepGroups(logits.dtype, logits.shape[-1], x_t, x_t, step, draws=True)
    for chunk in run:
        rows, threads = chunk.rows, torch.get_num_threads()
        form, v, f = chunk.step.form, chunk.v, chunk.f
        is_direct = model.direct and chunk.s == 0
        tilt = run.log_tilt(chunk, model.posterior_mean and not is_direct)
        predict = rows, logits.data_ptr(), pointer(tilt), v.data_ptr(), 0.0, 1, 0
        cpu.dense_predict(run.dtype, predict, threads)
        tables: tuple[Tensor | None, ...] = None, None, v
        if not is_direct:
            form.apply(v, f)
            tables = *run.tables(chunk)[:2], f
        inexact = chunk.inexact.data_ptr()
        at = map(pointer, tables)
        call = rows, *at, form.error, random_record(random), out.data_ptr(), inexact
        cpu.dense_p_sample(run.dtype, call, threads)
    if run.inexact:
        again = Recompute(run, logits)
        drawn = _recomputed(again, model, random, x_t.numel())
        out.view(-1)[again.tokens] = drawn
        check_drawn(out, x_t, logits.__getitem__)
    return out


def _recomputed(again: Recompute, model: Model, random: Random, num_tokens: int) -> Tensor:
    """Return x_s of inexact tokens, int64 ``(n,)``, from the numbers of these tokens.

    The posterior's own arithmetic takes all of a chain's digits, where that of draws is rough.
    """
    _, draw = uniforms_of(random, num_tokens)
    drawn = draw_row(
        p_posterior(again.logits, again.x_t, again.step, model).exp(), draw[again.tokens]
    )
    without = (drawn == NONE) & ~((again.s == 0) & model.direct)
    drawn[without] = drawn[without].where(_are_led_to(again, without), again.x_t[without])
    return drawn


def _are_led_to(again: Recompute, tokens: Tensor) -> Tensor:
    """Return of which tokens x_t is one that the chain itself leads a class to."""
    steps, which = torch.stack([again.s, again.t, again.x_t])[:, tokens].unique(
        dim=1, return_inverse=True
    )
    found = torch.zeros(steps.shape[1], dtype=torch.bool)
    for u, (s, t, x_t) in enumerate(steps.T.tolist()):
        only = torch.tensor([x_t]) if again.chain.by_row else None
        columns = again.chain.log_columns(s, t, only)
        found[u] = (columns[int(x_t) if only is None else 0] > -torch.inf).any()
    return found[which]
