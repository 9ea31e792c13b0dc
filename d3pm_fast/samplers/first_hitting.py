"""The first-hitting sampler of absorbing chains: the times of all tokens are drawn first."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .. import functional, timesteps
from .._checks import check_choice
from ..chains import RankOneChain
from ..choices import LASTS, Last
from ..diffusion import Diffusion
from ..predictions import Predicted
from ..records import Random
from ..reference.philox import uniforms
from ..sampling import Denoiser, Known, counters_of, start, step, warn_of_masks
from .absorbing import LEAST_TIME, absorbing, hit_times, masked_at, rows_of


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
    chain = absorbing(diffusion)
    has_all_times = steps is None and not chain.has_steps
    times = [1.0, LEAST_TIME, 0.0] if has_all_times else timesteps.path(chain.num_steps, steps)
    check_choice("last", last, LASTS)
    counters = counters_of(chain, times)
    x, seeds = start(diffusion, shape, known, generator, seeds, counters[0] + 1)
    ends = torch.tensor(times[::-1], dtype=chain.time_dtype, device=x.device)
    number, _ = uniforms(seeds, counters[0] + 1, x.numel())
    if has_all_times:
        ends, hit = torch.cat([ends[:2], hit_times(chain, number)]).unique(return_inverse=True)
        hit = hit[2:]
    else:
        hit = _draw_hits(chain, ends, number)
    hit = rows_of(hit.view(x.shape))
    if known is not None:
        hit = hit.where(~rows_of(known[1]), 1)
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


def _draw_hits(chain: RankOneChain, ends: Tensor, number: Tensor) -> Tensor:
    """Return i in 1..n for each number: a token is unmasked from ``ends[i]`` to ``ends[i-1]``.

    By inverse CDF: a token of x_T is masked at t with probability (1 - abar_t) / (1 - abar_T).
    """
    masked = masked_at(chain, ends)
    return torch.searchsorted(masked, number * masked[-1], right=True)


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
