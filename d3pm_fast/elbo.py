"""The variational bound of data, all of it: every step's term and the prior (D3PM, eq. 1)."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm.auto import tqdm

from . import functional, timesteps
from ._checks import check_count, check_mask, check_tokens
from .reference.philox import uniforms

if TYPE_CHECKING:
    from .diffusion import D3PM

__all__ = ["ELBO", "elbo"]


@dataclass(frozen=True)
class ELBO:
    """The negative evidence lower bound of B items: no less than ``-log p(x_0)`` on average.

    The average is over the draws of x_t; all numbers are float64.

    Attributes:
        terms: ``(B, n)``, nats: each step's term, the sum over positions. Of an estimate, what
            each step adds to it: 0 for a step that was not drawn.
        times: int64 ``(n,)``: the times that the steps start from, ascending; 1..T, or strided.
        prior: ``(B,)``, nats: the term of x_T.
        num_tokens: int64 ``(B,)``: how many tokens count.
        standard_error: ``(B,)``, nats: of an estimate; None where no step is left out.
    """

    terms: Tensor
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
    diffusion: "D3PM",
    denoiser: Callable[[Tensor, Tensor], functional.Prediction],
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
    """Return the bound of every item, each x_t drawn once.

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
        num_times: how many of the steps are drawn for each item, without repetition, and stand
            for all of them without a bias; None takes every step. The standard error then needs
            two. It counts the chance in x_t too, and errs on the side of caution: its square is
            up to ``1 / (1 - num_times / steps)`` times what it should be.
        mask: bool ``(B, *S)``, True where a token counts. The denoiser sees the others as they
            are in x0.
        generator: where the seeds come from; None for PyTorch's default generator.
        seeds: int64 ``(B,)`` in its place, see :func:`d3pm_fast.draw_seeds`.
        batch_size: the most x_t in one denoiser call.
        progress: show a progress bar.

    Raises:
        TypeError, ValueError, IndexError: as the functions of :mod:`d3pm_fast.functional`.
    """
    check_tokens("x0", x0)
    tokens = data = x0.long()
    if mask is not None:
        check_mask(mask, x0.shape)
        data = tokens.where(mask, 0)
    times = torch.tensor(timesteps.path(diffusion.num_steps, steps)[::-1], device=x0.device)
    starts, targets = times[1:], times[:-1]
    num_steps, batch = len(starts), len(x0)
    num_times = num_steps if num_times is None else check_count("num_times", num_times)
    if num_times > num_steps:
        raise ValueError(f"num_times must be at most {num_steps}, got {num_times}")
    check_count("batch_size", batch_size)
    seeds = functional.check_seeds(seeds, generator, x0).to(x0.device)

    chance = uniforms(seeds, 0, batch * diffusion.num_steps)
    order, own = (u.view(batch, diffusion.num_steps)[:, starts - 1] for u in chance)
    chosen = order.argsort(dim=1)[:, :num_times].sort(dim=1).values
    terms = torch.zeros(batch, num_steps, dtype=torch.float64, device=x0.device)
    # By time first: chains of matrices take tokens of one step together.
    calls = torch.arange(batch * num_times, device=x0.device).split(batch_size)
    for call in tqdm(calls, desc="bound", unit="call", disable=not progress):
        item, place = call % batch, call // batch
        step = chosen[item, place]
        t, s = starts[step], targets[step]
        numbers = (own[item, step] * 2.0**53).long()
        counts = None if mask is None else mask[item]
        x_t = functional.q_sample(
            diffusion.transition, data[item], t, seeds=numbers, impl=diffusion.impl
        )
        if counts is not None:
            x_t = x_t.where(counts, tokens[item])
        loss = diffusion.loss(
            denoiser(x_t, t),
            data[item],
            x_t,
            t,
            mask=counts,
            reduction="none",
            s=s if num_steps < diffusion.num_steps else None,
        )
        terms[item, step] = functional.sum_positions(loss.double())

    standard_error = None
    if num_times < num_steps:
        drawn = terms.gather(1, chosen)
        squares = (drawn - drawn.mean(dim=1, keepdim=True)).square().sum(dim=1)
        standard_error = num_steps * (squares / (num_times - 1) / num_times).sqrt()
        terms *= num_steps / num_times
    counted = torch.ones_like(data) if mask is None else mask.long()
    return ELBO(
        terms=terms,
        times=starts,
        prior=diffusion.prior(data, mask),
        num_tokens=functional.sum_positions(counted),
        standard_error=standard_error,
    )
