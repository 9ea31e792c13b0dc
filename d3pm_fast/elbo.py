"""The variational bound of data, all of it: every step's term and the prior (D3PM, eq. 1)."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad
from tqdm.auto import tqdm

from . import functional, timesteps
from ._checks import check_count, check_mask, check_tokens
from .diffusion import Diffusion
from .functional.seeds import check_seeds
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
            each step adds to it: 0 for a step that was not taken.
        taken: bool ``(B, n)``: which steps were taken; all of them where it is no estimate.
        times: int64 ``(n,)``: the times that the steps start from, ascending; 1..T, or strided.
        prior: ``(B,)``, nats: the term of x_T.
        num_tokens: int64 ``(B,)``: how many tokens count.
        standard_error: ``(B,)``, nats: of an estimate; None where no step is left out.
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
    steps: int | Iterable[int] | None = None,
    num_times: int | None = None,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
    seeds: Tensor | None = None,
    batch_size: int = 64,
    progress: bool = False,
) -> ELBO:
    """Return the bound of every item, each x_t drawn once, or an estimate of it.

    What is drawn for an item and a time depends on the item's seed and the time alone. Beside
    the terms there are only the tensors of one denoiser call.

    Args:
        diffusion: the chain and the model's reverse step.
        denoiser: maps ``(x_t (n, *S) int64, t (n,) int64)`` to logits ``(n, *S, K)``, or to a
            pair of parameters, see :class:`d3pm_fast.functional.Logistic`. The n need not be
            of different items, nor of one time. Put it in evaluation mode yourself.
        x0: the data, ``(B, *S)``, on the module's device.
        steps: the steps that the model takes, see :func:`d3pm_fast.timesteps.path`: how many,
            evenly strided, or the times that they start from; None for all T. Fewer
            steps have a bound of their own, from x_t straight to x_s (D3PM, section 3.3).
        num_times: how many of the steps are taken for each item, at least 3, to stand for all of
            them without a bias; None takes every step. The step to 0 is always among them, for
            it may hold most of the bound, as the mean over two x_t. The others are cut into
            ``num_times - 1`` runs, as equal in length as can be, and one step is drawn from each.
            The standard error counts the chance in x_t too, and errs on the side of caution: its
            square is too large by half the squared differences between what neighbouring runs
            hold, the last being the first one's neighbour.
        mask: bool ``(B, *S)``, True where a token counts. The denoiser sees the others as they
            are in x0.
        generator: where the seeds come from; None for PyTorch's default generator.
        seeds: int64 ``(B,)`` in its place, see :func:`d3pm_fast.draw_seeds`.
        batch_size: the most x_t in one denoiser call.
        progress: show a progress bar.

    Raises:
        TypeError, ValueError, IndexError: as the functions of :mod:`d3pm_fast.functional`.
    """
    chain, impl = diffusion.transition, diffusion.impl
    if not chain.has_steps:
        raise ValueError("the chain must have T steps, got one in continuous time")
    check_tokens("x0", x0, chain.num_classes)
    x0 = x0.long()
    if mask is not None:
        check_mask(mask, x0.shape)
    times = torch.tensor(timesteps.path(chain.num_steps, steps)[::-1], device=x0.device)
    starts, targets = times[1:], times[:-1]
    num_steps, batch = len(starts), len(x0)
    if num_times is None:
        num_times = num_steps
    elif check_count("num_times", num_times, least=min(3, num_steps)) > num_steps:
        raise ValueError(f"num_times must be at most {num_steps}, got {num_times}")
    check_count("batch_size", batch_size)
    seeds = check_seeds(seeds, generator, x0).to(x0.device)

    chance = uniforms(seeds, 0, batch * chain.num_steps)
    spare, own = (u.view(batch, chain.num_steps)[:, starts - 1] for u in chance)
    chosen = torch.arange(num_steps, device=x0.device).expand(batch, num_steps)
    shares = torch.ones(num_steps, dtype=torch.float64, device=x0.device)
    if num_times < num_steps:
        chosen, shares, own = _draw_steps(spare, own, num_times)
    numbers = (own * 2.0**53).long()
    parts = torch.zeros_like(own)
    # By time first: chains of matrices take tokens of one step together.
    calls = torch.arange(parts.numel(), device=x0.device).split(batch_size)
    for call in tqdm(calls, desc="bound", unit="call", disable=not progress):
        item, place = call % batch, call // batch
        step = chosen[item, place]
        t, s = starts[step], targets[step]
        counts = None if mask is None else mask[item]
        numbers_of = numbers[item, place]
        x_t = functional.q_sample(chain, x0[item], t, seeds=numbers_of, mask=counts, impl=impl)
        loss = functional.loss(
            chain,
            denoiser(x_t, t),
            x0[item],
            x_t,
            t,
            s if num_steps < chain.num_steps else None,
            reverse=diffusion.reverse,
            first_step=diffusion.first_step,
            mask=counts,
            reduction="none",
            impl=impl,
        )
        parts[item, place] = shares[place] * sum_positions(loss.double())

    standard_error = None
    if num_times < num_steps:
        standard_error = (_variance(parts[:, :2]) + _variance(parts[:, 2:])).sqrt()
    counted = torch.ones_like(x0) if mask is None else mask.long()
    return ELBO(
        terms=torch.zeros_like(spare).scatter_add_(1, chosen, parts),
        taken=torch.zeros_like(spare, dtype=torch.bool).scatter_(1, chosen, True),
        times=starts,
        prior=functional.prior(chain, x0, mask),
        num_tokens=sum_positions(counted),
        standard_error=standard_error,
    )


def _draw_steps(spare: Tensor, own: Tensor, num_times: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the steps that an estimate takes, ``(B, num_times + 1)``, the first of them twice.

    With them how many steps each stands for, and the numbers to draw x_t by. ``spare`` and
    ``own`` are uniform numbers in [0, 1) for each step, ``(B, n)``; the latter draw the x_t of a
    whole bound.
    """
    num_runs, num_others = num_times - 1, own.shape[1] - 1
    ends = 1 + torch.arange(num_times, device=own.device) * num_others // num_runs
    lengths = ends.diff()
    others = ends[:-1] + (spare[:, 1:num_times] * lengths).long()
    numbers = torch.cat([own[:, :1], spare[:, :1], own.gather(1, others)], dim=1)
    return pad(others, (2, 0)), pad(lengths.double(), (2, 0), value=0.5), numbers


def _variance(parts: Tensor) -> Tensor:
    """Return an estimate of the variance of the sum of independent parts ``(B, n)``, n above 1.

    Each part, drawn once, is compared with its neighbours in a circle. In the mean it is the
    variance and half the squared differences between the means of neighbours.
    """
    return (parts - parts.roll(1, dims=1)).square().sum(dim=1) / 2
