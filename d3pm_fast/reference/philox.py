"""Philox4x32-10 (Salmon et al. 2011) on int64 tensors: the random numbers of every sampler.

A token's numbers depend on its item's seed, the step and its position in the item, and on
nothing else: not on the batch, the number of threads, the device or the implementation.
"""

import math
from typing import TypeVar

import torch
from torch import Tensor

from ..records import Random, TokenRandom

IntOrTensor = TypeVar("IntOrTensor", int, Tensor)

_LOW = 0xFFFFFFFF


def uniforms_of(random: Random, num_tokens: int, pair: int = 0) -> tuple[Tensor, Tensor]:
    """Return the numbers of a call, as :func:`uniforms` does."""
    seeds, step, offset = random
    return uniforms(seeds, step, num_tokens, pair, offset)


def uniforms(
    seeds: Tensor, step: int, num_tokens: int, pair: int = 0, position_offset: int = 0
) -> tuple[Tensor, Tensor]:
    """Return two independent uniforms in [0, 1) for each token, 53 bits each.

    Args:
        seeds: int64 ``(B,)``, one for each num_tokens / B consecutive tokens.
        step: the counter of the step, in [0, 2^63).
        num_tokens: N.
        pair: which, where a token takes more than one pair; below 2^24.
        position_offset: the position of the first token of each item; positions are below 2^40.

    Returns:
        Two float64 tensors ``(N,)``.
    """
    positions = num_tokens // max(len(seeds), 1)
    random = tokens_of(Random(seeds, step, position_offset), (len(seeds), positions))
    first, second = uniforms_at(random, pair)
    return first.flatten(), second.flatten()


def tokens_of(random: Random, shape: tuple[int, ...]) -> TokenRandom:
    """Return what the numbers of each token depend on, for tokens ``(B, *S)``."""
    seeds, step, offset = random
    num_positions = math.prod(shape[1:])
    positions = torch.arange(offset, offset + num_positions, device=seeds.device)
    positions = positions.view(1, *shape[1:]).expand(shape).contiguous()
    of_item = seeds.view(-1, *(1 for _ in shape[1:])).expand(shape).contiguous()
    return TokenRandom(of_item, positions, step)


def uniforms_at(random: TokenRandom, pair: int | Tensor = 0) -> tuple[Tensor, Tensor]:
    """Return two independent uniforms in [0, 1) for each token, or each of its pairs.

    Args:
        random: of ``(*S,)`` tokens.
        pair: which; int64 ``(P,)`` for several.

    Returns:
        Two float64 tensors ``(*S,)`` or ``(*S, P)``.
    """
    seeds, positions, step = random
    if isinstance(pair, Tensor):
        seeds, positions = seeds.unsqueeze(-1), positions.unsqueeze(-1)
    place = positions + (pair << 40)
    steps = (torch.full_like(place, half) for half in _halves(step))
    words = philox((*_halves(place), *steps), _halves(seeds))
    return _to_unit(words[0], words[1]), _to_unit(words[2], words[3])


def philox(counter: tuple[Tensor, ...], key: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the four 32-bit words of Philox4x32-10, each in an int64 tensor."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _multiply(0xD2511F53, c0)
        high1, low1 = _multiply(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & _LOW, (k1 + 0xBB67AE85) & _LOW
    return c0, c1, c2, c3


def _multiply(constant: int, word: Tensor) -> tuple[Tensor, Tensor]:
    # The 64-bit product wraps around in int64 with its bits intact.
    product = word * constant
    return product >> 32 & _LOW, product & _LOW


def _halves(value: IntOrTensor) -> tuple[IntOrTensor, IntOrTensor]:
    return value & _LOW, value >> 32 & _LOW


def _to_unit(low: Tensor, high: Tensor) -> Tensor:
    return (high << 21 | low >> 11).double() * 2.0**-53
