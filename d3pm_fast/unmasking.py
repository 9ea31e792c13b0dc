"""Samplers that only absorbing chains have: a token changes once, when it is unmasked."""

import math
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor
from tqdm.auto import tqdm

from . import functional, timesteps
from ._checks import check_choice, check_number
from .chains import RankOneChain
from .choices import LASTS, Last
from .diffusion import Diffusion
from .predictions import Predicted
from .records import Random
from .reference.philox import uniforms
from .sampling import Denoiser, Known, counters_of, start, step, warn_of_masks, widened

__all__ = ["confidence", "first_hitting"]

_LEAST_TIME = 2.0**-53


@torch.no_grad()
def first_hitting(
    diffusion: Diffusion,
    denoiser: Denoiser,
    shape: tuple[int, ...],
    *,
    steps: int | Iterable[float] | None = None,
    last: Last = "sample",
    known: Known | None = None,
    generator: torch.Generator | None = None,
    seeds: Tensor | None = None,
    progress: bool = False,
    callback: Callable[[Tensor, int], None] | None = None,
) -> Tensor:
    """Draw by the first-hitting sampler (Zheng et al. 2024, arXiv 2409.02908), for any times.

    When a token is unmasked says nothing about its class: the step from t to s unmasks a masked
    token with probability ``(abar_s - abar_t) / (1 - abar_t)``. So these steps are drawn first,
    each token's apart, and the denoiser is called for those alone that unmask a token of an
    item. Every item goes its own way through time: call n serves the n-th such step of each, and
    the number of calls is at most that of the tokens of an item, and one for the step to 0,
    whatever T is. With a mask that is never predicted the law is that of
    :func:`d3pm_fast.sampling.ancestral`, for the same times. In continuous time without steps it
    is the limit of ever shorter steps, without an error: each token has a time of its own.

    Args:
        diffusion: an absorbing chain and the model's first step.
        denoiser: maps ``(x_t (n, *S) int64, t (n,) int64)`` to logits ``(n, *S, K)``, or
            to whatever else :func:`d3pm_fast.functional.p_sample` takes in their place. It is
            given a part of the batch, and t differs between items. In continuous
            time t is float64. Put it in evaluation mode yourself.
        shape: ``(B, *S)``.
        steps: how many evenly strided times, in 1..T, or the times themselves, falling from T;
            None for all T, in continuous time for all of [0, 1]. See
            :func:`d3pm_fast.timesteps.path`.
        last: in the step to 0, ``"sample"``, or ``"argmax"`` for the likeliest class of each token.
        known: ``(tokens, mask)``, integers and bool ``(B, *S)``: where the mask is True, x is held
            at these tokens, and the others are filled in.
        generator: where the seeds come from; None for PyTorch's default generator.
        seeds: int64 ``(B,)`` in its place, see :func:`d3pm_fast.draw_seeds`.
        progress: show a progress bar.
        callback: called with x and how many calls are left, before the first and after each.

    Returns:
        x_0, int64 ``(B, *S)``, on the module's device.

    Raises:
        ValueError: the chain is not absorbing.
        TypeError, ValueError, IndexError: as the functions of :mod:`d3pm_fast.functional`.
    """
    chain = _absorbing(diffusion)
    has_all_times = steps is None and not chain.has_steps
    times = [1.0, _LEAST_TIME, 0.0] if has_all_times else timesteps.path(chain.num_steps, steps)
    check_choice("last", last, LASTS)
    counters = counters_of(chain, times)
    x, seeds = start(diffusion, shape, known, generator, seeds, counters[0] + 1)
    ends = torch.tensor(times[::-1], dtype=chain.time_dtype, device=x.device)
    number, _ = uniforms(seeds, counters[0] + 1, x.numel())
    if has_all_times:
        ends, hit = torch.cat([ends[:2], _hit_times(chain, number)]).unique(return_inverse=True)
        hit = hit[2:]
    else:
        hit = _draw_hits(chain, ends, number)
    hit = _rows(hit.view(x.shape))
    if known is not None:
        hit = hit.where(~_rows(known[1]), 1)
    order = _falling_ranks(hit).where(hit > 1, -1)  # the step to 0 is every item's last
    calls = int(order.max()) + 1 if order.numel() else 0
    if callback is not None:
        callback(x, calls + 1)
    for call in tqdm(range(calls + 1), desc="sampling", unit="call", disable=not progress):
        if call < calls:
            now = order == call
            at = hit.where(now, 0).amax(dim=1)
            items = at.nonzero().squeeze(1)
            x_t, t = x[items], ends[at[items]]
            drawn = _draw_x0(diffusion, denoiser(x_t, t), x_t, t, seeds[items], counters[0] + 2)
            x = x.index_copy(0, items, drawn.where(now[items].view(x_t.shape), x_t))
        else:
            x = step(diffusion, denoiser, x, times[-2], 0, Random(seeds, counters[-1]), last, known)
        if callback is not None:
            callback(x, calls - call)
    warn_of_masks(diffusion, x, known)
    return x


@torch.no_grad()
def confidence(
    diffusion: Diffusion,
    denoiser: Denoiser,
    shape: tuple[int, ...],
    *,
    steps: int | Iterable[float] | None = None,
    noise: float = 4.5,
    remask: bool = False,
    known: Known | None = None,
    generator: torch.Generator | None = None,
    seeds: Tensor | None = None,
    progress: bool = False,
    callback: Callable[[Tensor, Any], None] | None = None,
) -> Tensor:
    """Unmask the tokens that the denoiser is surest of first (MaskGIT, Chang et al. 2022).

    A heuristic: it does not sample the model's law. Each step draws all masked tokens and masks
    again those drawn with the least probability, so many that the share of masked tokens is the
    chain's, ``(1 - abar_s) / (1 - abar_T)``, rounded. More steps than tokens are of no use.

    Args:
        diffusion: an absorbing chain.
        denoiser: maps ``(x_t (n, *S) int64, t (n,) int64)`` to logits ``(n, *S, K)``, or
            to whatever else :func:`d3pm_fast.functional.p_sample` takes in their place. In
            continuous time t is float64. Put it in evaluation mode yourself.
        shape: ``(B, *S)``.
        steps: how many evenly strided times, in 1..T, or the times themselves, falling from T;
            None for all T. Continuous time, T = 1, needs one of them. See
            :func:`d3pm_fast.timesteps.path`.
        noise: what a Gumbel number is multiplied with before it is added to the log-probability
            of a token, at T; it falls to 0 in proportion to s (MaskGIT's choice temperature).
        remask: whether a token may be masked again in later steps, by the confidence with which
            it was drawn (Mask-Predict, Ghazvininejad et al. 2019); else it stays.
        known: ``(tokens, mask)``, integers and bool ``(B, *S)``: where the mask is True, x is held
            at these tokens, and the others are filled in.
        generator: where the seeds come from; None for PyTorch's default generator.
        seeds: int64 ``(B,)`` in its place, see :func:`d3pm_fast.draw_seeds`.
        progress: show a progress bar.
        callback: called with ``(x_T, T)`` and then with each ``(x_s, s)``.

    Returns:
        x_0, int64 ``(B, *S)``, on the module's device.

    Raises:
        ValueError: the chain is not absorbing.
        TypeError, ValueError, IndexError: as the functions of :mod:`d3pm_fast.functional`.
    """
    chain = _absorbing(diffusion)
    times = timesteps.path(chain.num_steps, steps)
    check_number("noise", noise)
    counters = counters_of(chain, times)
    x, seeds = start(diffusion, shape, known, generator, seeds, counters[0] + 1)
    free = (_rows(x) == chain.mask_id).sum(dim=1, keepdim=True)
    masked = _masked(chain, torch.tensor(times, dtype=chain.time_dtype, device=x.device))
    shares, dim = masked / masked[0], diffusion.class_dim
    sure = torch.full(x.shape, math.inf, dtype=torch.float64, device=x.device)
    if callback is not None:
        callback(x, times[0])
    steps_down = list(zip(pairwise(times), counters, shares[1:], strict=True))
    for (t, s), counter, share in tqdm(
        steps_down, desc="sampling", unit="step", disable=not progress
    ):
        starts = torch.full((len(x),), t, dtype=chain.time_dtype, device=x.device)
        is_masked = x == chain.mask_id
        prediction = denoiser(x, starts)
        x = _draw_x0(diffusion, prediction, x, starts, seeds, step=counter)
        log_s = functional.p_posterior(
            chain,
            widened(prediction),
            x,
            starts,
            0 * starts,
            first_step="logits",
            class_dim=dim,
            impl=diffusion.impl,
        )
        drawn = log_s.gather(dim, x.clamp(min=0).unsqueeze(dim)).squeeze(dim)  # NaN where x is NONE
        drawn += noise * s / times[0] * _gumbel(seeds, counter, x)
        sure = drawn.where(is_masked, sure if remask else math.inf)
        rank = _rows(sure).argsort(dim=1).argsort(dim=1)
        unsure = rank < (free * share).round()
        x = x.where(~unsure.view(x.shape), chain.mask_id)
        if callback is not None:
            callback(x, s)
    warn_of_masks(diffusion, x, known)
    return x


def _absorbing(diffusion: Diffusion) -> RankOneChain:
    chain = diffusion.transition
    if chain.family != "absorbing":
        raise ValueError(f"the chain must be absorbing, got {chain.family}")
    return cast(RankOneChain, chain)


def _masked(chain: RankOneChain, t: Tensor) -> Tensor:
    """Return the probability that a token is masked at t."""
    return chain.product_coefficients(t)[..., 2].contiguous()


def _draw_hits(chain: RankOneChain, ends: Tensor, number: Tensor) -> Tensor:
    """Return i in 1..n for each number: a token is unmasked from ``ends[i]`` to ``ends[i-1]``.

    By inverse CDF: a token of x_T is masked at t with probability (1 - abar_t) / (1 - abar_T).
    """
    masked = _masked(chain, ends)
    return torch.searchsorted(masked, number * masked[-1], right=True)


def _hit_times(chain: RankOneChain, number: Tensor) -> Tensor:
    """Return the time in (0, 1] when a token is unmasked, for each number, by bisection."""
    low, high = torch.zeros_like(number), torch.ones_like(number)
    goal = number * _masked(chain, high)
    for _ in range(60):
        middle = (low + high) / 2
        is_later = _masked(chain, middle) <= goal
        low, high = middle.where(is_later, low), high.where(is_later, middle)
    return high.clamp(min=_LEAST_TIME)


def _falling_ranks(hit: Tensor) -> Tensor:
    """Return how many greater values each row of ``(B, P)`` has, equal ones counted once."""
    falling, place = hit.sort(dim=1, descending=True)
    rank = (falling.diff(dim=1) != 0).cumsum(dim=1)
    return torch.zeros_like(hit).scatter(1, place[:, 1:], rank)


def _draw_x0(
    diffusion: Diffusion,
    prediction: Predicted,
    x_t: Tensor,
    t: Tensor,
    seeds: Tensor,
    step: int,
) -> Tensor:
    """Draw all masked tokens from the prediction; the others stay."""
    return functional.p_sample(
        diffusion.transition,
        prediction,
        x_t,
        t,
        torch.zeros_like(t),
        first_step="posterior",
        seeds=seeds,
        step=step,
        class_dim=diffusion.class_dim,
        impl=diffusion.impl,
    )


def _gumbel(seeds: Tensor, step: int, x: Tensor) -> Tensor:
    """Return Gumbel numbers, independent of those that :func:`_draw_x0` takes in this step."""
    number, _ = uniforms(seeds, step, x.numel(), pair=1)
    return -torch.log(-torch.log1p(-number)).view(x.shape)


def _rows(tokens: Tensor) -> Tensor:
    """Return ``(B, *S)`` as ``(B, P)``."""
    return tokens.reshape(len(tokens), math.prod(tokens.shape[1:]))
