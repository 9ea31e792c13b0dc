"""Drawing new data: from x_T, the stationary distribution, step by step down to x_0."""

import itertools
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from . import functional, timesteps
from ._checks import (
    check_choice,
    check_range,
    check_same_device,
    check_shape,
    check_sizes,
    check_tokens,
)
from ._reuse import Reuse
from .chains import Transition
from .choices import LASTS, Last
from .diffusion import Diffusion
from .functional.seeds import check_seeds
from .predictions import Predicted, as_prediction
from .records import Random
from .reference.draws import NONE

__all__ = ["ancestral"]

Denoiser = Callable[[Tensor, Tensor], Predicted]
Known = tuple[Tensor, Tensor]


@torch.no_grad()
def ancestral(
    diffusion: Diffusion,
    denoiser: Denoiser,
    shape: tuple[int, ...],
    *,
    steps: int | Iterable[float] | None = None,
    last: Last = "sample",
    known: Known | None = None,
    time_independent: bool = False,
    generator: torch.Generator | None = None,
    seeds: Tensor | None = None,
    position_offset: int = 0,
    progress: bool = False,
    callback: Callable[[Tensor, Any], None] | None = None,
) -> Tensor:
    """Draw new data: x_T from the stationary distribution, then each ``x_s ~ p(x_s | x_t)``.

    An item depends on its own seed alone, whatever the batch: 5 items and then 3 more from one
    generator are the 8 items that one call would have drawn.

    Args:
        diffusion: the chain and the model's reverse step.
        denoiser: maps ``(x_t (B, *S) int64, t (B,) int64)`` to logits ``(B, *S, K)``, or to
            whatever else :func:`d3pm_fast.functional.p_sample` takes in their place. Put it in
            evaluation mode yourself.
        shape: ``(B, *S)``.
        steps: how many evenly strided times, in 1..T, or the times themselves, falling from T;
            None for all T. In continuous time, T = 1, one of them is needed, see
            :func:`d3pm_fast.timesteps.grid`.
        last: ``"sample"``, or ``"argmax"`` for the likeliest class of each token under
            ``p(x_0 | x_t)`` in the step to 0, of equals the lowest, as the paper's code has it.
        known: ``(tokens, mask)``, integers and bool ``(B, *S)``: where the mask is True, x is
            held at these tokens in every step, and the others are filled in. In an absorbing
            chain they are the tokens that were unmasked first, and the order of unmasking says
            nothing about the data: a denoiser that knows q(x_0 | x_t) draws from the
            conditional law. In other chains x_t has no such tokens without noise: a heuristic.
        time_independent: the denoiser promises not to look at t. It is then called only for
            the items that the last step has changed.
        generator: where the seeds come from; None for PyTorch's default generator.
        seeds: int64 ``(B,)`` in its place, see :func:`d3pm_fast.draw_seeds`.
        position_offset: the position in its item of the first token that is given of each, where
            these are a part of the positions, as the shard of a sequence; positions of several
            axes count as flattened.
        progress: show a progress bar.
        callback: called with ``(x_T, T)`` and then with each ``(x_s, s)``.

    Returns:
        x_0, int64 ``(B, *S)``, on the module's device.

    Raises:
        TypeError, ValueError, IndexError: as the functions of :mod:`d3pm_fast.functional`.
    """
    chain = diffusion.transition
    times = timesteps.path(chain.num_steps, steps)
    check_choice("last", last, LASTS)
    counters = counters_of(chain, times)
    first = counters[0] + 1, position_offset
    x, seeds = start(diffusion, shape, known, generator, seeds, *first)
    if time_independent:
        denoiser = Reuse(denoiser)
    if callback is not None:
        callback(x, times[0])
    pairs = list(zip(itertools.pairwise(times), counters, strict=True))
    for (t, s), counter in tqdm(pairs, desc="sampling", unit="step", disable=not progress):
        random = Random(seeds, counter, position_offset)
        x = step(diffusion, denoiser, x, t, s, random, last, known)
        if callback is not None:
            callback(x, s)
    warn_of_masks(diffusion, x, known)
    return x


def counters_of(chain: Transition, times: list[Any]) -> Sequence[int]:
    """Return what tells the random numbers of the steps apart: t, or how many are left."""
    return times[:-1] if chain.has_steps else range(len(times) - 1, 0, -1)


def warn_of_masks(diffusion: Diffusion, x: Tensor, known: Known | None) -> None:
    """Warn where masks are left in a sample, but for those that were given."""
    mask_id = diffusion.transition.mask_id
    left = x == mask_id
    if known is not None:
        left &= ~known[1]
    if mask_id >= 0 and bool(left.any()):
        warnings.warn(
            f"the sample holds the mask, class {mask_id}, for the denoiser gives it probability: "
            "make the chain with data_has_mask=False where the data never hold it",
            stacklevel=4,
        )


def start(
    diffusion: Diffusion,
    shape: tuple[int, ...],
    known: Known | None,
    generator: torch.Generator | None,
    seeds: Tensor | None,
    counter: int,
    position_offset: int = 0,
) -> tuple[Tensor, Tensor]:
    """Return x_T with the known tokens in it, and each item's seed, after all checks."""
    check_sizes("shape", shape)
    device = diffusion.transition.device
    if known is not None:
        tokens, mask = known
        check_tokens("known[0]", tokens)
        check_shape("known[0]", tokens, shape)
        check_shape("known[1]", mask, shape)
        if mask.dtype != torch.bool:
            raise TypeError(f"known[1] must be a bool tensor, got {mask.dtype}")
        check_same_device(transition=diffusion.transition, tokens=tokens, mask=mask)
        check_range("known[0]", tokens.where(mask, 0), 0, diffusion.transition.num_classes)
    items = torch.empty(shape[0], device=device)
    seeds = check_seeds(seeds, generator, items).to(device)
    x = functional.sample_prior(
        diffusion.transition, shape, seeds, counter, position_offset=position_offset
    )
    return hold(x, known), seeds


def step(
    diffusion: Diffusion,
    denoiser: Denoiser,
    x_t: Tensor,
    t: float,
    s: float,
    random: Random,
    last: Last,
    known: Known | None,
) -> Tensor:
    """Return x_s after one call of the denoiser."""
    chain = diffusion.transition
    starts, targets = (
        torch.full((len(x_t),), time, dtype=chain.time_dtype, device=x_t.device) for time in (t, s)
    )
    prediction = denoiser(x_t, starts)
    model: dict[str, Any] = {
        "reverse": diffusion.reverse,
        "first_step": diffusion.first_step,
        "class_dim": diffusion.class_dim,
        "impl": diffusion.impl,
    }
    if s == 0 and last == "argmax":
        log_p = functional.p_posterior(chain, widened(prediction), x_t, starts, targets, **model)
        dim = diffusion.class_dim
        likeliest = log_p.argmax(dim=dim).where(~log_p.isnan().any(dim=dim), NONE)
        x_s = hold(likeliest, known)
        if x_s.device.type == "cpu":
            as_prediction(prediction, chain, dim).check_drawn(x_s, x_t)
        return x_s
    # A step of one has its coefficients in a table.
    ends = None if chain.has_steps and s == t - 1 else targets
    numbers = random._asdict()
    drawn = functional.p_sample(chain, prediction, x_t, starts, ends, **numbers, **model)
    return hold(drawn, known)


def widened(prediction: Predicted) -> Predicted:
    """Return a prediction in float64: log-probabilities that are rounded have ties of their own."""
    if isinstance(prediction, Tensor):
        return prediction.double()
    make = getattr(type(prediction), "_make", tuple)
    return make(v.double() if isinstance(v, Tensor) else v for v in prediction)


def hold(x: Tensor, known: Known | None) -> Tensor:
    """Return x with the known tokens where they are known."""
    if known is None:
        return x
    tokens, mask = known
    return tokens.to(x.dtype).where(mask, x)
