"""Draws of corrupted data."""

import torch
from torch import Tensor

from .. import ops
from .._checks import check_mask, check_same_device, check_times, check_tokens
from ..chains import Transition
from ..choices import Impl
from ..records import Random
from .arguments import choose, contiguous, contiguous_times
from .seeds import check_offset, check_seeds


def q_sample(
    transition: Transition,
    x0: Tensor,
    t: Tensor,
    *,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
    seeds: Tensor | None = None,
    step: int = 0,
    position_offset: int = 0,
    impl: Impl = "auto",
) -> Tensor:
    """Draw ``x_t ~ q(x_t | x_0)`` (D3PM, eq. 3).

    Args:
        transition: the chain.
        x0: the data, ``(B, *S)``.
        t: times, ``(B,)`` or ``(B, *S)``, in 0..T; at t = 0 the data itself comes back.
        mask: bool ``(B, *S)``, True where a token is drawn. The others come back as they are,
            and may hold anything.
        generator: where the seeds come from; None for PyTorch's default generator.
        seeds: int64 ``(B,)`` in place of a generator: an item's draw depends on its own seed,
            ``step`` and the position in the item alone (:func:`d3pm_fast.draw_seeds`).
        step: a counter in [0, 2^63) that tells draws of the same seeds apart.
        position_offset: the position in its item of the first token that is given of each, where
            these are a part of the positions, as the shard of a sequence; positions of several
            axes count as flattened.
        impl: which implementation serves the call.

    Returns:
        ``(B, *S)`` in the dtype of x0.
    """
    check_tokens("x0", x0, transition.num_classes)
    check_times("t", t, x0.shape, transition.has_steps)
    if mask is not None:
        check_mask(mask, x0.shape)
    check_same_device(x0=x0, t=t, mask=mask, transition=transition)
    seeds = check_seeds(seeds, generator, x0)
    random = Random(seeds, step, check_offset(position_offset, x0[:1].numel()))
    tokens = data = contiguous(x0)
    if mask is not None:
        data = tokens.where(mask, 0)
    name = choose(impl, "q_sample", transition, t, 0, x0=data)
    kernel = ops.q_sample.kernel(name, transition.structure)
    marginal = transition.marginal_record(contiguous_times(transition, t))
    drawn: Tensor = kernel(data, transition.of_tokens(marginal, x0=data), random)
    return (drawn if mask is None else drawn.where(mask, tokens)).to(x0.dtype)
