"""Which tokens a step unmasks first, and how many."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..choices import Order
from ..functional import PredictedTokens
from ..reference.philox import uniforms

_PAIR = 1 << 23  # of a token's random numbers: no tile of classes has it


def random_numbers(seeds: Tensor, step: int, x: Tensor) -> Tensor:
    """Return a uniform for each token ``(B, *S)``, independent of what its class is drawn by."""
    number, _ = uniforms(seeds, step, x.numel(), pair=_PAIR)
    return number.view(x.shape)


def gumbel_numbers(seeds: Tensor, step: int, x: Tensor) -> Tensor:
    """Return Gumbel numbers in their place."""
    return -torch.log(-torch.log1p(-random_numbers(seeds, step, x)))


def scores(order: Order, found: PredictedTokens, seeds: Tensor, step: int) -> Tensor:
    """Return float64 ``(B, *S)``, the larger the sooner a token is unmasked."""
    if order == "random":
        return random_numbers(seeds, step, found.token)
    return _SCORES[order](found).double()


_SCORES: dict[str, Callable[[PredictedTokens], Tensor]] = {
    "confidence": lambda found: found.log_prob,
    "raw_confidence": lambda found: found.raw_log_prob,
    "margin": lambda found: found.margin,
    "entropy": lambda found: -found.entropy,
}


def ranks(score: Tensor) -> Tensor:
    """Return how many tokens of its row come before each of ``(B, P)``, the largest first."""
    return score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)


def within_bound(entropy: Tensor, rank: Tensor, bound: float) -> Tensor:
    """Return which tokens ``(B, P)`` are taken together, in the order of their ranks.

    As long as the entropies of all but the last sum up to at most the bound (Ben-Hamu et al. 2025,
    arXiv 2505.24857, with the largest entropy left out): the first always.
    """
    in_order = torch.zeros_like(entropy).scatter(1, rank, entropy)
    before = in_order.cumsum(dim=1) - in_order
    return before.gather(1, rank) <= bound
