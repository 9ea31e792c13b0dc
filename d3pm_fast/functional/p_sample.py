"""Draws of reverse steps."""

from typing import Any

import torch
from torch import Tensor

from .. import _environment, ops
from .._checks import check_tokens
from ..chains import Transition
from ..choices import ClassDim, FirstStep, Impl, Reverse
from ..predictions import Predicted, as_prediction
from ..records import Random
from .arguments import (
    check_model,
    check_target,
    choose,
    contiguous,
    contiguous_times,
    is_too_narrow,
)
from .seeds import check_offset, check_seeds

# In quotes on inner functions: the compilers of PyTorch 2.4 to 2.6 cannot build annotations.


def p_sample(
    transition: Transition,
    logits: Predicted,
    x_t: Tensor,
    t: Tensor,
    s: Tensor | None = None,
    *,
    reverse: Reverse = "joint",
    first_step: FirstStep = "posterior",
    generator: torch.Generator | None = None,
    seeds: Tensor | None = None,
    step: int = 0,
    position_offset: int = 0,
    class_dim: ClassDim = -1,
    impl: Impl = "auto",
) -> Tensor:
    """Draw ``x_s ~ p(x_s | x_t)``; s = t - 1 unless given (D3PM, eq. 4 and appendix A.3).

    Exact to the tails: a class of probability 1e-9 comes at that rate. Most tokens of an absorbing
    chain are seen to stay before their logits are read, which may then be anything.

    Args:
        transition: the chain.
        logits: the denoiser's prediction of x_0, ``(B, *S, K)``.
        x_t: the corrupted data, ``(B, *S)``.
        t: times, ``(B,)`` or ``(B, *S)``, in 1..T.
        s: times that the steps lead to, the shape of t, in 0..t-1; t - 1 unless given.
        reverse: ``"joint"`` (eq. 4) or ``"posterior_mean"`` (the posteriors of all x_0,
            each with its predicted weight).
        first_step: the model of every step to s = 0: ``"posterior"`` treats it as any other step;
            ``"logits"`` takes the softmax itself, for every token.
        generator: where the seeds come from; None for PyTorch's default generator.
        seeds: int64 ``(B,)`` in place of a generator: an item's draw depends on its own seed,
            ``step`` and the position in the item alone (:func:`d3pm_fast.draw_seeds`).
        step: a counter in [0, 2^63) that tells draws of the same seeds apart.
        position_offset: the position in its item of the first token that is given of each, where
            these are a part of the positions, as the shard of a sequence; positions of several
            axes count as flattened.
        class_dim: where the logits have the classes: -1, or 1 for ``(B, K, *S)``.
        impl: which implementation serves the call.

    Returns:
        ``(B, *S)`` in the dtype of x_t. On a GPU -1, which is out of range wherever it goes on
        to, where a draw's logits have NaN, inf or nothing but -inf, or forbid all that leads to
        x_t; as uint8, 255.

    Raises:
        ValueError: on a CPU for such logits, with the token's index.
    """
    prediction = as_prediction(logits, transition, class_dim)
    check_tokens("x_t", x_t, transition.num_classes, prediction.shape)
    model = check_model(transition, prediction, x_t, t, reverse, first_step)
    prediction = prediction.whole()
    if is_too_narrow(prediction, transition):
        prediction = prediction.double()
    if _environment.CHECK:
        prediction.check_no_nan()
    seeds = check_seeds(seeds, generator, x_t)
    offset = check_offset(position_offset, x_t[:1].numel())
    s = check_target(transition, s, t, x_t.shape)
    name = choose(impl, prediction.operations.p_sample.name, transition, t, 1, x_t=x_t)

    def find(operation: "ops.Operation") -> "Any":
        is_served = operation.is_served(name, transition.structure)
        return operation.kernel(name, transition.structure) if is_served else None

    def draw(
        kernel: "Any",
        logits: "Tensor",
        x_t: "Tensor",
        t: "Tensor",
        s: "Tensor",
        seeds: "Tensor",
        *last: "Any",
        position: "int" = 0,
    ) -> "Tensor":
        step_of = prediction.step_record(transition, x_t, t, s)
        random = Random(seeds, step, offset + position)
        return kernel(logits, x_t, step_of, model, random, *last)  # type: ignore[no-any-return]

    with torch.no_grad():
        items = contiguous(x_t), contiguous_times(transition, t), s, seeds
        drawn = prediction.served_by(name).sampled(find, draw, items)
    if _environment.CHECK:
        prediction.check_drawn(drawn, x_t)
    return drawn.to(x_t.dtype)
