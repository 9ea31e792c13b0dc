"""The end of the forward process: its divergence from the stationary distribution, and draws."""

import math

import torch
from torch import Tensor

from .._checks import check_mask, check_range, check_same_device, check_tokens
from ..chains import Transition, running_sums
from ..reductions import sum_positions
from ..reference.draws import draw_base
from ..reference.philox import uniforms
from .arguments import can_be_read
from .seeds import check_offset


def prior(transition: Transition, x0: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return ``KL(q(x_T | x_0) || stationary)`` in nats, the bound's ``L_T`` (D3PM, eq. 1).

    Args:
        transition: the chain.
        x0: the data, ``(B, *S)``.
        mask: bool ``(B, *S)``, True where a token counts; the others may hold anything.

    Returns:
        float64 ``(B,)``, the sum over positions: it has no parameters, and says what the chain
        has not forgotten at T. NaN for an item with a class out of range, where that is not
        raised.
    """
    check_tokens("x0", x0, transition.num_classes)
    check_same_device(x0=x0, transition=transition)
    if mask is not None:
        check_mask(mask, x0.shape)
        x0 = x0.where(mask, 0)
    if can_be_read(x0):
        check_range("x0", x0, 0, transition.num_classes)
    is_class = (x0 >= 0) & (x0 < transition.num_classes)
    terms = transition.prior()[x0.long().where(is_class, 0)].where(is_class, torch.nan)
    return sum_positions(terms if mask is None else terms.where(mask, 0))


def sample_prior(
    transition: Transition,
    shape: tuple[int, ...],
    seeds: Tensor,
    step: int = 0,
    *,
    position_offset: int = 0,
) -> Tensor:
    """Draw x_T from the stationary distribution, int64 ``(B, *S)``.

    Args:
        transition: the chain.
        shape: ``(B, *S)``.
        seeds: int64 ``(B,)``: an item's draw depends on its own seed, ``step`` and the position in
            the item alone (:func:`d3pm_fast.draw_seeds`).
        step: a counter in [0, 2^63) that tells draws of the same seeds apart.
        position_offset: the position in its item of the first token that is given of each, where
            these are a part of the positions, as the shard of a sequence; positions of several
            axes count as flattened.
    """
    offset = check_offset(position_offset, math.prod(shape[1:]))
    _, draw = uniforms(seeds, step, math.prod(shape), position_offset=offset)
    return draw_base(draw, running_sums(transition.stationary()), transition.num_classes).view(
        shape
    )
