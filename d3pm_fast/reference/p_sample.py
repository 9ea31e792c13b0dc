"""Draw ``x_s ~ p(x_s | x_t)`` (D3PM, eq. 4)."""

import torch
from torch import Tensor

from .philox import uniforms
from .step import MakeStep


def p_sample(
    logits: Tensor,
    x_t: Tensor,
    make_step: MakeStep,
    posterior_mean: bool,
    direct: bool,
    seeds: Tensor,
    step: int,
) -> Tensor:
    """Return x_s, int64 ``(B, *S)``."""
    choice, draw = (u.view(x_t.shape) for u in uniforms(seeds, step, x_t.numel()))
    log_x0 = torch.log_softmax(logits.double(), dim=-1)
    made = make_step(logits.shape, torch.float64)
    return made.draw(log_x0, x_t, posterior_mean, direct, (choice, draw))
