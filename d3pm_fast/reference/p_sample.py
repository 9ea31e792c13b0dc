"""Draw ``x_s ~ p(x_s | x_t)`` as a mixture: the model's x_0, the stationary part, or x_t."""

import torch
from torch import Tensor

from .philox import uniforms
from .q_sample import draw_base
from .rank_one import Step, at, compute_dtype


def p_sample(
    logits: Tensor,
    x_t: Tensor,
    rows: Tensor,
    table: Tensor,
    base: Tensor | None,
    mask_id: int,
    base_cdf: Tensor | None,
    posterior_mean: bool,
    direct: bool,
    seeds: Tensor,
    step: int,
) -> Tensor:
    """Return x_s, int64 ``(B, *S)``.

    With ``u = u[x_t]``, ``p(j) Z = u A s_j + u ubar_j + a f[x_t] [j = x_t]``: one number chooses
    among the model (mass ``u A``), the base (``u W``), the mask (``u M``) and staying, the other
    draws the class from s or from the base.
    """
    dtype = compute_dtype(logits.dtype)
    choice, draw = (u.view(x_t.shape) for u in uniforms(seeds, step, x_t.numel()))
    c = Step.gather(table, rows, base, mask_id, logits.shape, torch.float64)

    log_x0 = torch.log_softmax(logits.to(dtype), dim=-1).double()
    first = (c.target_time == 0) & direct
    log_s = log_x0.where(first, c.tilt(log_x0, x_t)) if posterior_mean else log_x0
    here = at(c.log_predicted(log_s), x_t).exp().squeeze(-1)
    is_mask = (x_t == mask_id).double()
    vector = c.log_vector.exp()[x_t]
    spread = c.base.squeeze(-1) * vector + c.mask.squeeze(-1) * is_mask

    model, stationary, mask = (
        (spread * part.squeeze(-1)) for part in (c.bar_keep, c.bar_base, c.bar_mask)
    )
    threshold = choice * (spread + c.keep.squeeze(-1) * here)
    from_model = (threshold < model) | first.squeeze(-1)
    from_base = threshold < model + stationary
    from_mask = threshold < model + stationary + mask

    fallback = x_t.where(~from_mask | (mask_id < 0), mask_id)
    fallback = draw_base(draw, base_cdf, logits.shape[-1]).where(from_base, fallback)
    return _draw_row(log_s.exp(), draw).where(from_model, fallback)


def _draw_row(s: Tensor, draw: Tensor) -> Tensor:
    running = s.cumsum(-1)
    # A product that rounds up to the sum itself belongs to the last class that has any mass.
    last = (s > 0).long().cumsum(-1).argmax(-1)
    found = torch.searchsorted(running, (draw.unsqueeze(-1) * running[..., -1:]), right=True)
    return found.squeeze(-1).minimum(last)
