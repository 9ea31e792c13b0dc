"""The truncated discretized logistic parameterization of x_0 (D3PM, appendix A.8)."""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .logspace import compute_dtype


def logistic_logits(
    loc: Tensor, log_scale: Tensor, num_classes: int, edge_corrected: bool
) -> Tensor:
    """Return the log of each bin's mass, ``(B, *S, K)``, differentiable in both parameters.

    Bin k lies between ``(2k - K) / (K - 1)`` and ``(2k + 2 - K) / (K - 1)``. Between edges x and
    x + d, in units of the scale ``exp(log_scale - 2)``, the mass is
    ``sigmoid(x + d) sigmoid(-x) (1 - exp(-d))``: no difference of like numbers in either tail.

    Calculated in float64. The result is of the compute dtype, float32 also for 16 bits: logits
    that are made in a kernel are never stored in fewer. What lies beyond its range, or a scale
    beyond exp(±600), is held at the end of it.

    Args:
        loc: where the distribution is centred, ``(B, *S)``; data lie in [-1, 1].
        log_scale: ``(B, *S)``.
        num_classes: K, at least 2.
        edge_corrected: whether the outer bins take all the mass outside of them.
    """
    dtype = compute_dtype(loc.dtype)
    loc, log_scale = loc.double().unsqueeze(-1), log_scale.double().unsqueeze(-1)
    inverse_scale = math.exp(2) * (-log_scale).clamp(-600, 600).exp()
    half_width = inverse_scale / (num_classes - 1)
    borders = torch.arange(-num_classes, num_classes + 1, 2, device=loc.device)
    edges = (borders - loc * (num_classes - 1)) * half_width

    below, above = logsigmoid(edges), logsigmoid(-edges)
    logits = below[..., 1:] + above[..., :-1] + (-torch.expm1(-2 * half_width)).log()
    if edge_corrected:
        inner = logits[..., 1:-1]
        logits = torch.cat([below[..., 1:2], inner, above[..., -2:-1]], dim=-1)
    return logits.clamp(min=torch.finfo(dtype).min).to(dtype)
