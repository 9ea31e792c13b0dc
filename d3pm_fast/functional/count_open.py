"""How many tokens a loss has to look at, known when x_t is drawn."""

from collections.abc import Callable

import torch
from torch import Tensor

from .. import ops
from .._checks import (
    check_choice,
    check_mask,
    check_same_device,
    check_shape,
    check_times,
    check_token_weights,
    check_tokens,
)
from ..chains import Transition
from ..choices import FIRST_STEPS, FirstStep
from ..records import Loss, Model, Weights
from ..reference.logspace import spread
from .arguments import check_target, contiguous, contiguous_times
from .loss import without_logits

__all__ = ["Count", "count_open"]


class Count:
    """A count that a device makes while the host goes on; an integer to whoever asks.

    ``int(count)`` waits for the count alone, not for what the device was given to do after it.

    Args:
        count: of integers, ``()``.
    """

    def __init__(self, count: Tensor) -> None:
        self._count = count.to("cpu", non_blocking=True)
        self._wait: Callable[[], None] | None = None
        if count.is_cuda:
            self._wait = torch.cuda.current_stream(count.device).record_event().synchronize

    def __index__(self) -> int:
        if self._wait is not None:
            self._wait()
        return int(self._count)


def count_open(
    transition: Transition,
    x0: Tensor,
    x_t: Tensor,
    t: Tensor,
    s: Tensor | None = None,
    *,
    first_step: FirstStep = "posterior",
    mask: Tensor | None = None,
    weights: Tensor | None = None,
) -> Count:
    """Count the tokens whose :func:`loss` is not 0 for every prediction: as ``Linear.num_open``.

    Of an absorbing chain these are the masked ones. Called when x_t is drawn, the count is there by
    the time of the loss, and nobody waits for a GPU. Tokens that the mask leaves out, or whose
    weight is 0, are not counted. It is the count for the bound alone, without a cross-entropy.

    Args:
        transition: the chain.
        x0: as :func:`loss` has it, as the others.
        x_t: the corrupted data.
        t: times.
        s: times that the steps lead to.
        first_step: the model of the steps to s = 0.
        mask: which tokens count.
        weights: factors of tokens.
    """
    for key, tokens in (("x0", x0), ("x_t", x_t)):
        check_tokens(key, tokens, transition.num_classes)
    check_shape("x_t", x_t, x0.shape)
    check_times("t", t, x0.shape, transition.has_steps)
    check_choice("first_step", first_step, FIRST_STEPS)
    if mask is not None:
        check_mask(mask, x0.shape)
    factors = None
    if weights is not None:
        check_token_weights(weights, x0.shape)
        factors = spread(weights, x0.shape)
    check_same_device(x0=x0, x_t=x_t, t=t, mask=mask, weights=weights, transition=transition)
    if transition.has_steps or s is not None:
        s = check_target(transition, s, t, x0.shape)
    items = contiguous(x0), mask, contiguous(x_t), contiguous_times(transition, t), s, factors
    model = Model(posterior_mean=False, direct=first_step == "logits")
    of = without_logits(transition, model, Weights(vb=1.0, ce=0.0), False, items)
    return Count(ops.count_open(Loss(x0.new_empty(0), *of)))
