"""Classes from uniform numbers, by inverse CDF."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..records import TokenRandom
from .philox import uniforms_at

TILE = 4096  # classes that two numbers draw from


def draw_base(draw: Tensor, pi_cdf: Tensor | None, num_classes: int) -> Tensor:
    """Return the class in which the uniform ``draw`` falls, int64; None: all are alike."""
    if pi_cdf is None:
        return (draw * num_classes).long()
    return torch.searchsorted(pi_cdf, draw, right=True)


NONE = -1  # the class of a draw from what is no law: out of range wherever it goes


def draw_row(weights: Tensor, draw: Tensor) -> Tensor:
    """Return a class from each row of weights ``(B, *S, K)``, int64 ``(B, *S)``.

    ``NONE`` where the weights have no sum above 0, or NaN among them.
    """
    running = weights.cumsum(-1)
    # A product that rounds up to the sum itself belongs to the last class that has any mass.
    last = (weights > 0).long().cumsum(-1).argmax(-1)
    found = torch.searchsorted(running, (draw.unsqueeze(-1) * running[..., -1:]), right=True)
    return found.squeeze(-1).minimum(last).where(running[..., -1] > 0, NONE)


def draw_in_tiles(weights: Tensor, random: TokenRandom) -> Tensor:
    """Return a class from each row of weights ``(*S, K)``, int64 ``(*S,)``; ``NONE`` as above.

    In tiles of :data:`TILE` classes, so that a row is read once: the pair i of a token's numbers is
    for tile i. The first takes it in place of what was drawn before by its share of the sum so far,
    the second draws one of its classes. Rows of one tile are drawn as by :func:`draw_row`.
    """
    num_tiles = -(-weights.shape[-1] // TILE)
    if num_tiles <= 1:
        return draw_row(weights, uniforms_at(random)[1])
    tiles = pad(weights, (0, num_tiles * TILE - weights.shape[-1])).unflatten(-1, (-1, TILE))
    sums = tiles.sum(dim=-1)
    pairs = torch.arange(num_tiles, device=weights.device)
    takes, draws = uniforms_at(random, pairs)
    is_taken = takes * sums.cumsum(dim=-1) < sums
    tile = (is_taken * pairs).amax(dim=-1, keepdim=True)
    of_tile = tiles.take_along_dim(tile.unsqueeze(-1), dim=-2).squeeze(-2)
    drawn = draw_row(of_tile, draws.gather(-1, tile).squeeze(-1))
    has_law = sums.sum(dim=-1) > 0
    found: Tensor = (tile.squeeze(-1) * TILE + drawn).where(has_law & (drawn >= 0), NONE)
    return found
