"""What the samplers of absorbing chains share: a token changes once, when it is unmasked."""

import math
from typing import cast

import torch
from torch import Tensor

from ..chains import RankOneChain
from ..diffusion import Diffusion

LEAST_TIME = 2.0**-53


def absorbing(diffusion: Diffusion) -> RankOneChain:
    """Return the chain; raise where it is no absorbing one."""
    chain = diffusion.transition
    if chain.family != "absorbing":
        raise ValueError(f"the chain must be absorbing, got {chain.family}")
    return cast(RankOneChain, chain)


def masked_at(chain: RankOneChain, t: Tensor) -> Tensor:
    """Return the probability that a token is masked at t."""
    return chain.product_coefficients(t)[..., 2].contiguous()


def hit_times(chain: RankOneChain, number: Tensor) -> Tensor:
    """Return the time in (0, 1] when a token is unmasked, for each number, by bisection."""
    low, high = torch.zeros_like(number), torch.ones_like(number)
    goal = number * masked_at(chain, high)
    for _ in range(60):
        middle = (low + high) / 2
        is_later = masked_at(chain, middle) <= goal
        low, high = middle.where(is_later, low), high.where(is_later, middle)
    return high.clamp(min=LEAST_TIME)


def time_of_share(chain: RankOneChain, share: Tensor) -> Tensor:
    """Return the first time at which at least such a share of x_T's masks is there, ``(B,)``."""
    if not chain.has_steps:
        return hit_times(chain, share)
    masked = masked_at(chain, torch.arange(chain.num_steps + 1, device=share.device))
    return torch.searchsorted(masked, share * masked[-1]).clamp(1, chain.num_steps)


def rows_of(tokens: Tensor) -> Tensor:
    """Return ``(B, *S)`` as ``(B, P)``."""
    return tokens.reshape(len(tokens), math.prod(tokens.shape[1:]))
