"""Draw ``x_s ~ p(x_s | x_t)`` (D3PM, eq. 4)."""

import torch
from torch import Tensor

from .._checks import check_drawn
from .draws import NONE, draw_row
from .philox import uniforms
from .posterior import log_p_posterior
from .rank_one import RankOneStep
from .step import MakeStep, Step


def p_sample(
    logits: Tensor,
    x_t: Tensor,
    make_step: MakeStep,
    posterior_mean: bool,
    direct: bool,
    seeds: Tensor,
    step: int,
) -> Tensor:
    """Return x_s, int64 ``(B, *S)``; ``NONE`` where there is no law, which on a CPU raises."""
    inside = (x_t >= 0) & (x_t < logits.shape[-1])
    choice, draw = (u.view(x_t.shape) for u in uniforms(seeds, step, x_t.numel()))
    logits, made = logits.double(), make_step(logits.shape, torch.float64)
    args = x_t.where(inside, 0), posterior_mean, direct
    if isinstance(made, RankOneStep):
        drawn = made.draw(torch.log_softmax(logits, dim=-1), *args, (choice, draw))
    else:
        drawn = _by_inverse_cdf(made, logits, *args, draw)
    drawn = drawn.where(inside & ~made.target_time.isnan().squeeze(-1), NONE)
    if drawn.device.type == "cpu":
        check_drawn(drawn, x_t, logits.__getitem__)
    return drawn


def _by_inverse_cdf(
    step: Step, logits: Tensor, x_t: Tensor, posterior_mean: bool, direct: bool, draw: Tensor
) -> Tensor:
    """Draw from the posterior's row; an x_t that the chain itself leads nothing to stays."""
    drawn = draw_row(log_p_posterior(step, logits, x_t, posterior_mean, direct).exp(), draw)
    led_to = (step.log_q_column(x_t) > -torch.inf).any(dim=-1)
    first = ((step.target_time == 0) & direct).squeeze(-1)
    return drawn.where(led_to | first, x_t)
