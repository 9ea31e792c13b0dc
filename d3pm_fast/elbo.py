"""The variational bound of data: every step's term, or the integral over time, and the prior."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from tqdm.auto import tqdm

from . import functional, timesteps
from ._checks import check_count, check_mask, check_t_min, check_tokens
from .diffusion import Diffusion
from .functional.seeds import check_offset, check_seeds
from .predictions import Predicted
from .reductions import sum_positions
from .reference.philox import uniforms

__all__ = ["ELBO", "elbo"]


@dataclass(frozen=True)
class ELBO:
    """The negative evidence lower bound of B items: no less than ``-log p(x_0)`` on average.

    The average is over the draws of x_t; all numbers are float64.

    Attributes:
        terms: ``(B, n)``, nats: each step's term, the sum over positions. Of an estimate, what
            each step adds to it: 0 for a step that was not taken. Of an integral over time, that
            of the step from t_min to 0, and of each part of [t_min, 1].
        taken: bool ``(B, n)``: which terms were taken; all of them where it is no estimate.
        times: int64 ``(n,)``: the times that the steps start from, ascending; 1..T, or strided.
            In continuous time float64; of an integral, where each part ends, from t_min to 1.
        prior: ``(B,)``, nats: the term of x_T.
        num_tokens: int64 ``(B,)``: how many tokens count.
        standard_error: ``(B,)``, nats: of an estimate; None where no time is left out.
    """

    terms: Tensor
    taken: Tensor
    times: Tensor
    prior: Tensor
    num_tokens: Tensor
    standard_error: Tensor | None

    @property
    def nats(self) -> Tensor:
        """The bound of each item, ``(B,)``."""
        return self.terms.sum(dim=1) + self.prior

    @property
    def bits_per_dim(self) -> Tensor:
        """The bound in bits for each token that counts, ``(B,)``."""
        return self.nats / (math.log(2) * self.num_tokens)


@torch.no_grad()
def elbo(
    diffusion: Diffusion,
    denoiser: Callable[[Tensor, Tensor], Predicted],
    x0: Tensor,
    *,
    steps: int | Iterable[float] | None = None,
    num_times: int | None = None,
    t_min: float = 1e-3,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
    seeds: Tensor | None = None,
    position_offset: int = 0,
    batch_size: int = 64,
    progress: bool = False,
) -> ELBO:
    """Return the bound of every item, each x_t drawn once, or an estimate of it.

    What is drawn for an item and a time depends on the item's seed and the time alone. Beside
    the terms there are only the tensors of one denoiser call.

    In continuous time without steps the bound is an integral: of the density
    (:func:`d3pm_fast.functional.loss` without s) from t_min to 1, with the term
    ``-log p(x_0 | x_t)`` of the step from t_min to 0 beside it. The model is then the process
    with the model's rates down to t_min, and that step. So nothing is left out, and the sum is
    a bound for every t_min.

    Args:
        diffusion: the chain and the model's reverse step.
        denoiser: maps ``(x_t (n, *S) int64, t (n,) int64)`` to logits ``(n, *S, K)``, or to a
            pair of parameters, see :class:`d3pm_fast.functional.Logistic`, or in continuous time to
            a :class:`d3pm_fast.functional.Score`. The n need not be
            of different items, nor of one time. In continuous time t is float64. Put it in
            evaluation mode yourself.
        x0: the data, ``(B, *S)``, on the module's device.
        steps: the steps that the model takes, see :func:`d3pm_fast.timesteps.path`: how many,
            evenly strided, or the times that they start from; None for all T, in continuous time
            for the integral. Fewer steps have a bound of their own, from x_t straight to x_s
            (D3PM, section 3.3).
        num_times: how many of the steps are taken for each item, at least 3, to stand for all of
            them without a bias; None takes every step. The step to 0 is always among them, for
            it may hold most of the bound, as the mean over two x_t. The others are cut into
            ``num_times - 1`` runs, as equal in length as can be, and one step is drawn from each.
            The standard error counts the chance in x_t too, and errs on the side of caution: its
            square is too large by half the squared differences between what neighbouring runs
            hold, the last being the first one's neighbour. An integral needs it: [t_min, 1] is
            cut into ``num_times - 1`` equal parts, and the density is taken at a uniform time of
            each.
        t_min: of an integral, where it ends, in (0, 1).
        mask: bool ``(B, *S)``, True where a token counts. The denoiser sees the others as they
            are in x0.
        generator: where the seeds come from; None for PyTorch's default generator.
        seeds: int64 ``(B,)`` in its place, see :func:`d3pm_fast.draw_seeds`.
        position_offset: the position in its item of the first token that is given of each, where
            these are a part of the positions, as the shard of a sequence. All parts take the same
            steps, and their terms and priors add up to those of the item.
        batch_size: the most x_t in one denoiser call.
        progress: show a progress bar.

    Raises:
        TypeError, ValueError, IndexError: as the functions of :mod:`d3pm_fast.functional`.
    """
    chain, impl = diffusion.transition, diffusion.impl
    check_tokens("x0", x0, chain.num_classes)
    x0 = x0.long()
    if mask is not None:
        check_mask(mask, x0.shape)
    is_integral = steps is None and not chain.has_steps
    path = _parts(t_min, num_times) if is_integral else timesteps.path(chain.num_steps, steps)
    times = torch.tensor(path[::-1], dtype=chain.time_dtype, device=x0.device)
    starts, targets = times[1:], times[:-1]
    num_terms, batch = len(starts), len(x0)
    if num_times is None:
        num_times = num_terms
    elif check_count("num_times", num_times, least=min(3, num_terms)) > num_terms:
        raise ValueError(f"num_times must be at most {num_terms}, got {num_times}")
    check_count("batch_size", batch_size)
    check_offset(position_offset, x0[:1].numel())
    seeds = check_seeds(seeds, generator, x0).to(x0.device)

    is_estimate = is_integral or num_times < num_terms
    num_drawn = chain.num_steps if chain.has_steps else num_terms
    columns = starts - 1 if chain.has_steps else torch.arange(num_terms, device=x0.device)
    chance = uniforms(seeds, 0, batch * num_drawn)
    spare, own = (u.view(batch, num_drawn)[:, columns] for u in chance)
    taken = _draw_steps(spare, own, num_times) if is_estimate else _all_steps(own)
    starts_of, targets_of = starts[taken.terms], targets[taken.terms]
    shares, num_steps = taken.shares, starts_of.shape[1]
    if is_integral:
        num_steps = 2  # to 0; what follows are densities, each at a time of its part
        lengths = pad((starts - targets)[1:], (2, 0))
        starts_of -= lengths * pad(spare[:, 1:], (2, 0))
        shares = shares * lengths.where(lengths > 0, 1)

    numbers = (taken.numbers * 2.0**53).long()
    parts = torch.zeros_like(numbers, dtype=torch.float64)
    has_table = num_terms == chain.num_steps  # of the coefficients of single steps
    calls = _calls(parts, num_steps, batch_size)
    for item, place, is_density in tqdm(calls, desc="bound", unit="call", disable=not progress):
        t, s = starts_of[item, place], targets_of[item, place]
        counts = None if mask is None else mask[item]
        numbers_of = numbers[item, place]
        x_t = functional.q_sample(
            chain,
            x0[item],
            t,
            mask=counts,
            seeds=numbers_of,
            position_offset=position_offset,
            impl=impl,
        )
        loss = functional.loss(
            chain,
            denoiser(x_t, t),
            x0[item],
            x_t,
            t,
            None if is_density or has_table else s,
            reverse=diffusion.reverse,
            first_step=diffusion.first_step,
            mask=counts,
            reduction="none",
            class_dim=diffusion.class_dim,
            impl=impl,
        )
        parts[item, place] = shares[place] * sum_positions(loss.double())

    standard_error = None
    if is_estimate:
        standard_error = (_variance(parts[:, :2]) + _variance(parts[:, 2:])).sqrt()
    counted = torch.ones_like(x0) if mask is None else mask.long()
    return ELBO(
        terms=torch.zeros_like(spare).scatter_add_(1, taken.terms, parts),
        taken=torch.zeros_like(spare, dtype=torch.bool).scatter_(1, taken.terms, True),
        times=starts,
        prior=functional.prior(chain, x0, mask),
        num_tokens=sum_positions(counted),
        standard_error=standard_error,
    )


def _parts(t_min: float, num_times: int | None) -> list[float]:
    """Return where the parts of an integral end, from 1 to t_min and 0."""
    if num_times is None:
        raise ValueError("num_times or steps is needed: continuous time has no steps of its own")
    check_t_min(t_min)
    num_parts = check_count("num_times", num_times, least=3) - 1
    ends = [t_min + (1 - t_min) * (i / num_parts) for i in range(num_parts, 0, -1)]
    return [1.0, *ends[1:], t_min, 0.0]


class _Taken(NamedTuple):
    """The steps that are taken for each item.

    Attributes:
        terms: int64 ``(B, m)``: which they are.
        shares: float64 ``(m,)``: how many each stands for.
        numbers: float64 ``(B, m)``, uniform in [0, 1), to draw x_t by.
    """

    terms: Tensor
    shares: Tensor
    numbers: Tensor


def _all_steps(own: Tensor) -> _Taken:
    """Return every step once, for uniform numbers ``(B, n)``."""
    terms = torch.arange(own.shape[1], device=own.device).expand(own.shape)
    return _Taken(terms, own.new_ones(own.shape[1]), own)


def _draw_steps(spare: Tensor, own: Tensor, num_times: int) -> _Taken:
    """Return the steps that an estimate takes, ``num_times + 1``, the first of them twice.

    ``spare`` and ``own`` are uniform numbers in [0, 1) for each step, ``(B, n)``; the latter draw
    the x_t of a whole bound.
    """
    num_runs, num_others = num_times - 1, own.shape[1] - 1
    ends = 1 + torch.arange(num_times, device=own.device) * num_others // num_runs
    lengths = ends.diff()
    others = ends[:-1] + (spare[:, 1:num_times] * lengths).long()
    numbers = torch.cat([own[:, :1], spare[:, :1], own.gather(1, others)], dim=1)
    return _Taken(pad(others, (2, 0)), pad(lengths.double(), (2, 0), value=0.5), numbers)


def _calls(parts: Tensor, num_steps: int, batch_size: int) -> list[tuple[Tensor, Tensor, bool]]:
    """Return items and places of each call of the denoiser, and whether they are densities.

    In the parts ``(B, m)`` those stand behind so many steps. By time first: chains of matrices
    take tokens of one step together.
    """
    batch, each = len(parts), torch.arange(parts.numel(), device=parts.device)
    groups = (each[: batch * num_steps], False), (each[batch * num_steps :], True)
    return [
        (call % batch, call // batch, is_density)
        for group, is_density in groups
        for call in group.split(batch_size)
        if len(call)
    ]


def _variance(parts: Tensor) -> Tensor:
    """Return an estimate of the variance of the sum of independent parts ``(B, n)``, n above 1.

    Each part, drawn once, is compared with its neighbours in a circle. In the mean it is the
    variance and half the squared differences between the means of neighbours.
    """
    return (parts - parts.roll(1, dims=1)).square().sum(dim=1) / 2
