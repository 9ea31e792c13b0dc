"""Samplers of absorbing chains that choose which tokens to unmask by what is predicted of them."""

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .. import functional, timesteps
from .._checks import check_choice, check_count, check_number, check_probability, check_sizes
from ..choices import LASTS, ORDERS, Last, Order
from ..diffusion import Diffusion
from ..sampling import Denoiser, Known, start, warn_of_masks
from .absorbing import absorbing, masked_at, rows_of, time_of_share
from .order import gumbel_numbers, ranks, scores, within_bound


@dataclass
class Transcript:
    """When each token was unmasked for good, ``(B, *S)``; filled in when a sampler ends.

    Attributes:
        call: the number of the denoiser's call, from 0; -1 for a token that was known.
        log_prob: of the token when it was drawn, by the shaped prediction, float64; 0 if known.
    """

    call: Tensor | None = None
    log_prob: Tensor | None = None


@torch.no_grad()
def unmask(
    diffusion: Diffusion,
    denoiser: Denoiser,
    shape: tuple[int, ...],
    *,
    steps: int | Iterable[float] | None = None,
    order: Order = "confidence",
    threshold: float | None = None,
    entropy_bound: float | None = None,
    block: int | None = None,
    take: Last = "sample",
    noise: float = 0.0,
    remask: bool = False,
    known: Known | None = None,
    generator: torch.Generator | None = None,
    seeds: Tensor | None = None,
    progress: bool = False,
    callback: Callable[[Tensor, int], None] | None = None,
    on_change: Callable[[Tensor], None] | None = None,
    record: Transcript | None = None,
) -> Tensor:
    """Unmask tokens in the order that the denoiser's predictions of them suggest.

    A heuristic: it does not sample the model's law. Each call of the denoiser predicts all masked
    tokens, of which some are unmasked. As many as the chain would have unmasked by then: after a
    step to s a share of ``(1 - abar_s) / (1 - abar_T)`` is masked, rounded. Or with a threshold or
    an entropy bound, and no steps, as many as these let, one at least, until none is masked.

    Args:
        diffusion: an absorbing chain.
        denoiser: maps ``(x_t (n, *S) int64, t (n,) int64)`` to logits ``(n, *S, K)``, or
            to whatever else :func:`d3pm_fast.functional.predict` takes in their place. In
            continuous time t is float64. In steps without blocks it is the step's time; else the
            time at which the chain has as many masks as the item. Put the denoiser in evaluation
            mode yourself.
        shape: ``(B, *S)``.
        steps: how many evenly strided times, in 1..T, or the times themselves, falling from T; of
            each block. None for all T; with a threshold or an entropy bound, for as many calls as
            it takes. See :func:`d3pm_fast.timesteps.path`.
        order: which tokens come first: ``"confidence"``, those drawn with the largest probability
            (MaskGIT, Chang et al. 2022); ``"raw_confidence"``, the same before temperature and
            truncation; ``"margin"``, by how much the likeliest class leads; ``"entropy"``, those of
            the least; ``"random"``.
        threshold: unmask in each step all tokens whose p_max is at least this, too.
        entropy_bound: unmask in each step, too, as many as have entropies that add up, but for the
            last one's, to at most this many nats.
        block: unmask so many positions from left to right before the next ones (semi-
            autoregressive); of those that are not known. None for all at a time.
        take: ``"sample"`` for classes drawn, ``"argmax"`` for the likeliest ones.
        noise: what a Gumbel number is multiplied with before it is added to the score of a token,
            at T; it falls to 0 in proportion to the step's time (MaskGIT's choice temperature).
        remask: whether a token may be masked again in later steps, by the score that it was
            unmasked with (Mask-Predict, Ghazvininejad et al. 2019).
        known: ``(tokens, mask)``, integers and bool ``(B, *S)``: where the mask is True, x is held
            at these tokens, as prompts of any length, and the others are filled in.
        generator: where the seeds come from; None for PyTorch's default generator.
        seeds: int64 ``(B,)`` in its place, see :func:`d3pm_fast.draw_seeds`.
        progress: show a progress bar.
        callback: called with x and how many calls are left at most, before the first and after
            each.
        on_change: called after each step that changed tokens with bool ``(B, *S)``: which ones. A
            denoiser that keeps what it made of finished blocks learns here what to make anew.
        record: filled in with when each token was unmasked.

    Returns:
        x_0, int64 ``(B, *S)``, on the module's device.

    Raises:
        ValueError: the chain is not absorbing.
        TypeError, ValueError, IndexError: as the functions of :mod:`d3pm_fast.functional`.
    """
    chain = absorbing(diffusion)
    check_choice("order", order, ORDERS)
    check_choice("take", take, LASTS)
    if threshold is not None:
        check_probability("threshold", threshold)
    if entropy_bound is not None and check_number("entropy_bound", entropy_bound) < 0:
        raise ValueError(f"entropy_bound must not be negative, got {entropy_bound}")
    adapts = steps is None and not (threshold is None and entropy_bound is None)
    if adapts and (check_number("noise", noise) != 0 or remask):
        raise ValueError("noise and remask need steps where there is a threshold or entropy_bound")
    check_sizes("shape", shape)
    num_positions = math.prod(shape[1:])
    block = max(num_positions, 1) if block is None else check_count("block", block)
    num_blocks = -(-num_positions // block)
    times = [] if adapts else timesteps.path(chain.num_steps, steps)
    of_block = min(block, num_positions) if adapts else len(times) - 1
    left = num_blocks * of_block
    x, seeds = start(diffusion, shape, known, generator, seeds, left + 1)
    at = torch.tensor(times, dtype=chain.time_dtype, device=x.device)
    shares = masked_at(chain, at)
    shares = shares / shares[:1]
    free = rows_of(x == chain.mask_id)
    if known is not None:
        free &= ~rows_of(known[1])
    place = (free.cumsum(dim=1) - 1).div(block, rounding_mode="floor")
    sure = torch.full(free.shape, -math.inf, dtype=torch.float64, device=x.device)
    when, log_prob = torch.full_like(x, -1), torch.zeros(x.shape, dtype=sure.dtype, device=x.device)
    if callback is not None:
        callback(x, left)
    turns = itertools.product(range(num_blocks), range(of_block))
    for number, turn in tqdm(turns, "sampling", left, unit="call", disable=not progress):
        here = free & (place == number)
        masked = here & rows_of(x == chain.mask_id)
        step, left = left, left - 1
        if x.device.type == "cpu" and not bool(masked.any()):  # elsewhere to look would wait
            if callback is not None and not adapts:
                callback(x, left)
            continue
        if adapts or num_blocks > 1:
            masks = rows_of(x == chain.mask_id) & free
            share = masks.sum(dim=1).double() / free.sum(dim=1).clamp(min=1)
            t = time_of_share(chain, share)
        else:
            t = at[turn].expand(len(x)).contiguous()
        found = functional.predict(
            chain,
            denoiser(x, t),
            x,
            t,
            mask=masked.view(x.shape),
            take=take,
            seeds=seeds,
            step=step,
            class_dim=diffusion.class_dim,
            impl=diffusion.impl,
        )
        score = scores(order, found, seeds, step)
        if noise != 0:
            score = score + noise * times[turn + 1] / times[0] * gumbel_numbers(seeds, step, x)
        sure = rows_of(score).where(masked, sure)
        opens = here if remask else masked
        rank = ranks(sure.where(opens, -math.inf))
        unmasks = rank < 1
        if not adapts:
            stay = (here.sum(dim=1, keepdim=True) * shares[turn + 1]).round()
            unmasks = rank < opens.sum(dim=1, keepdim=True) - stay
        if threshold is not None:
            unmasks |= rows_of(found.p_max) >= threshold
        if entropy_bound is not None:
            unmasks |= within_bound(rows_of(found.entropy).double(), rank, entropy_bound)
        drawn = found.token.where(masked.view(x.shape), x)
        before, x = x, drawn.where((unmasks | ~opens).view(x.shape), chain.mask_id)
        changed = x != before
        when = when.masked_fill(changed, num_blocks * of_block - step)
        log_prob = found.log_prob.double().where(changed, log_prob)
        if on_change is not None and (x.device.type != "cpu" or bool(changed.any())):
            on_change(changed)
        if callback is not None:
            callback(x, left)
    warn_of_masks(diffusion, x, known)
    if record is not None:
        record.call, record.log_prob = when, log_prob
    return x


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

    :func:`unmask` by confidence, with MaskGIT's noise. A heuristic: it does not sample the model's
    law. More steps than tokens are of no use.

    Args:
        diffusion: an absorbing chain.
        denoiser: as :func:`unmask` takes it.
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
    times = timesteps.path(absorbing(diffusion).num_steps, steps)

    def at_time(x: Tensor, left: int) -> None:
        assert callback is not None
        callback(x, times[len(times) - 1 - left])

    return unmask(
        diffusion,
        denoiser,
        shape,
        steps=times[:-1],
        noise=noise,
        remask=remask,
        known=known,
        generator=generator,
        seeds=seeds,
        progress=progress,
        callback=None if callback is None else at_time,
    )
