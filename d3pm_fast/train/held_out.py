"""The bound on data that the network has not seen."""

import math

import torch
from torch import Tensor, nn

from .._random import seeded
from ..d3pm import D3PM
from .config import T_MIN
from .device import autocast
from .items import Items

PAIRS = 2**13


@torch.no_grad()
def bits_per_token(
    diffusion: D3PM,
    denoiser: nn.Module,
    items: Items,
    batch_size: int,
    precision: str,
    device: torch.device,
    seed: int,
) -> float:
    """Return the variational bound, prior included, in bits a token that counts.

    The sum over t is estimated from 8192 pairs of an item and a time or more: the times of each
    item are evenly spaced, and are all T of them where the items are few enough. The bound is
    then exact in t, and one draw of x_t for each. In continuous time it is the integral from t_min
    to 1, and the term of the step from t_min to 0, one draw of x_t for each item.
    """
    denoiser.eval()
    generator = seeded(seed)

    def total(t: Tensor, is_step_to_zero: bool = False) -> float:
        """Return the sum of losses, nats, at times t[i], t[i + N], t[i + 2N] ... of item i."""
        rows = torch.arange(len(t)) % len(items)
        nats = 0.0
        for some, times in zip(rows.split(batch_size), t.split(batch_size), strict=True):
            batch = items[some].to(device)
            x_t = diffusion.q_sample(batch.x0, times, generator=generator)
            with autocast(precision, device):
                logits = batch.predict(denoiser, x_t, times)
            s = torch.zeros_like(times) if is_step_to_zero else None
            nats += diffusion.loss(
                logits, batch.x0, x_t, times, s, mask=batch.mask, reduction="sum"
            ).item()
        return nats

    has_steps = diffusion.transition.has_steps
    repeats = -(-PAIRS // len(items))
    if has_steps:
        repeats = min(diffusion.num_steps, repeats)
    t = diffusion.sample_t(repeats * len(items), True, generator, T_MIN)
    duration = diffusion.num_steps if has_steps else 1 - T_MIN
    nats = duration / repeats * total(t)
    if not has_steps:
        nats += total(torch.full_like(t[: len(items)], T_MIN), is_step_to_zero=True)
    tokens = items.tokens().to(device)
    return (nats + diffusion.prior(tokens).sum().item()) / len(tokens) / math.log(2)
