"""Draw ``x_s ~ p(x_s | x_t)`` (D3PM, eq. 4)."""

from typing import Any

import torch
from torch import Tensor

from .._no_law import check_drawn
from ..records import Model, Random
from .draws import NONE, draw_row
from .philox import uniforms_of
from .posterior import log_p_posterior
from .rank_one import RankOneLogs
from .step import StepLogs, logs_of


def p_sample(logits: Tensor, x_t: Tensor, step: Any, model: Model, random: Random) -> Tensor:
    """Return x_s, int64 ``(B, *S)``; ``NONE`` where there is no law, which on a CPU raises."""
    logs = logs_of(step, logits.shape, torch.float64)
    logits = logs.allowed(logits.double())
    inside = (x_t >= 0) & (x_t < logits.shape[-1])
    numbers = tuple(u.view(x_t.shape) for u in uniforms_of(random, x_t.numel()))
    draw = _from_mixture if isinstance(logs, RankOneLogs) else _by_inverse_cdf
    drawn = draw(logs, logits, x_t.where(inside, 0), model, numbers)
    drawn = drawn.where(inside & ~logs.target_time.isnan().squeeze(-1), NONE)
    if drawn.device.type == "cpu":
        check_drawn(drawn, x_t, logits.__getitem__)
    return drawn


def _by_inverse_cdf(
    logs: StepLogs, logits: Tensor, x_t: Tensor, model: Model, numbers: tuple[Tensor, ...]
) -> Tensor:
    """Draw from the posterior's row; an x_t that the chain itself leads nothing to stays."""
    _, draw = numbers
    drawn = draw_row(log_p_posterior(logs, logits, x_t, model).exp(), draw)
    led_to = (logs.log_q_column(x_t) > -torch.inf).any(dim=-1)
    first = ((logs.target_time == 0) & model.direct).squeeze(-1)
    return drawn.where(led_to | first, x_t)


def _from_mixture(
    logs: Any, logits: Tensor, x_t: Tensor, model: Model, numbers: tuple[Tensor, ...]
) -> Tensor:
    drawn: Tensor = logs.draw(torch.log_softmax(logits, dim=-1), x_t, model, numbers)
    return drawn
