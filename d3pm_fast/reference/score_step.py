"""The reverse steps that scores have, ``p(x_s | x_t)`` (SEDD, Lou et al. 2024, section 4)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from .._no_law import check_has_law
from ..chains.structures import RankOneStep
from ..records import Model, Random
from .draws import draw_row
from .logspace import compute_dtype
from .philox import uniforms_of
from .rank_one import RankOneLogs

Law = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def analytic_posterior(log_scores: Tensor, x_t: Tensor, step: Any, _model: Model) -> Tensor:
    """Return Tweedie's ``log p(x_s | x_t)``, ``(B, *S, K)``; in float32 or float64."""
    return _log_law(_weights(_analytic, log_scores, x_t, step), log_scores.dtype)


def euler_posterior(log_scores: Tensor, x_t: Tensor, step: Any, _model: Model) -> Tensor:
    """Return the same of the step to first order, whose record has times the rates."""
    return _log_law(_weights(_euler, log_scores, x_t, step), log_scores.dtype)


def analytic_p_sample(
    log_scores: Tensor, x_t: Tensor, step: Any, _model: Model, random: Random
) -> Tensor:
    """Return draws of Tweedie's law; ``NONE`` where there is none, which on a CPU raises."""
    return _drawn(_weights(_analytic, log_scores, x_t, step), random)


def euler_p_sample(
    log_scores: Tensor, x_t: Tensor, step: Any, _model: Model, random: Random
) -> Tensor:
    """Return draws of the step to first order, likewise."""
    return _drawn(_weights(_euler, log_scores, x_t, step), random)


def _analytic(
    keep: Tensor, u: Tensor, others: Tensor, u_xt: Tensor, ratios: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the weights of all classes but x_t, and that of x_t, each times ``Q[j, x_t]``.

    ``Q = a I + 1 u^T`` takes p_s to ``p_t = a p_s + u``, up to a factor ``1 + total`` where p_t is
    given by its ratios. So ``a p_s = ratios - u (1 + total)``; at x_t itself, where the ratio is 1,
    in terms that do not cancel.
    """
    total = ratios.sum(dim=-1, keepdim=True)
    moves = u_xt * (ratios - u * (1 + total))
    stays = (u_xt + keep) * (keep + others - u_xt * total)
    return moves, stays


def _euler(
    _keep: Tensor, _u: Tensor, _others: Tensor, u_xt: Tensor, ratios: Tensor
) -> tuple[Tensor, Tensor]:
    moves = u_xt * ratios
    return moves, 1 - moves.sum(dim=-1, keepdim=True)


def _weights(law: Law, log_scores: Tensor, x_t: Tensor, step: RankOneStep) -> Tensor:
    """Return the weights of a law, none below 0, float64 ``(B, *S, K)``; NaN where it has none."""
    logs = RankOneLogs.of(step, tuple(log_scores.shape), torch.float64)
    inside = ((x_t >= 0) & (x_t < log_scores.shape[-1])).unsqueeze(-1)
    here = x_t.unsqueeze(-1).where(inside, 0)
    u = logs.log_q_spread().exp()
    u_xt = u.gather(-1, here)
    may_be_data = torch.arange(u.shape[-1], device=u.device) != logs.forbidden
    at_s = may_be_data | (logs.is_held() & (logs.target_time > 0))
    # Where nothing but x_t leads to x_t, scores are not read.
    read = ((logs.is_held() | (u > 0)) & (u_xt > 0)).scatter(-1, here, False)
    ratios = log_scores.double().where(read, -torch.inf).exp()
    others = u.scatter(-1, here, 0).sum(dim=-1, keepdim=True)
    moves, stays = law(logs.keep, u, others, u_xt, ratios)
    weights = moves.where(read, 0).scatter(-1, here, stays).where(at_s, 0).clamp(min=0)
    total = weights.sum(dim=-1, keepdim=True)
    is_law = inside & (total > 0) & (total < torch.inf)
    return weights.where(is_law, torch.nan)


def _log_law(weights: Tensor, dtype: torch.dtype) -> Tensor:
    possible = weights > 0
    total = weights.sum(dim=-1, keepdim=True).log()
    log_p = (weights.where(possible, 1).log() - total).where(possible, -torch.inf)
    return log_p.where(~weights.isnan(), torch.nan).to(compute_dtype(dtype))


def _drawn(weights: Tensor, random: Random) -> Tensor:
    _, draw = (u.view(weights.shape[:-1]) for u in uniforms_of(random, weights[..., 0].numel()))
    drawn = draw_row(weights.nan_to_num(0), draw)
    if drawn.device.type == "cpu" and not is_compiling():
        check_has_law(drawn)
    return drawn
