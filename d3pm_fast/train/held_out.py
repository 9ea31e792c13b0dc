"""The bound on data that the network has not seen."""

import math

import torch
from torch import nn

from .._random import seeded
from ..d3pm import D3PM
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
    then exact in t, and one draw of x_t for each.
    """
    denoiser.eval()
    repeats = min(diffusion.num_steps, -(-PAIRS // len(items)))
    generator = seeded(seed)
    # The times of item i are t[i], t[i + N], t[i + 2N] ...
    t = diffusion.sample_t(repeats * len(items), low_discrepancy=True, generator=generator)
    rows = torch.arange(len(items)).repeat(repeats)
    nats = 0.0
    for some, times in zip(rows.split(batch_size), t.split(batch_size), strict=True):
        batch = items[some].to(device)
        x_t = diffusion.q_sample(batch.x0, times, generator=generator)
        with autocast(precision, device):
            logits = batch.predict(denoiser, x_t, times)
        nats += diffusion.loss(
            logits, batch.x0, x_t, times, mask=batch.mask, reduction="sum"
        ).item()
    tokens = items.tokens().to(device)
    bound = diffusion.num_steps / repeats * nats + diffusion.prior(tokens).sum().item()
    return bound / len(tokens) / math.log(2)
