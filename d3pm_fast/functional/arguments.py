"""What the operations check of their arguments, once, and how they choose who serves them."""

import torch
from torch import Tensor
from torch.compiler import is_compiling

from .. import _environment, derivatives, ops
from .._checks import (
    check_choice,
    check_interval,
    check_range,
    check_same_device,
    check_shape,
    check_times,
)
from ..chains import Transition
from ..choices import FIRST_STEPS, REVERSES, FirstStep, Impl, Reverse
from ..predictions import Prediction
from ..records import Model
from .impossible import check_possible


def check_model(
    transition: Transition,
    prediction: Prediction,
    x_t: Tensor,
    t: Tensor,
    reverse: Reverse,
    first_step: FirstStep,
    **others: Tensor | None,
) -> Model:
    """Return how the model steps back from a prediction, whose tokens x_t are checked.

    The others are on its device.
    """
    check_choice("reverse", reverse, REVERSES)
    check_choice("first_step", first_step, FIRST_STEPS)
    prediction.check(x_t.shape)
    prediction.check_chain(transition)
    check_times("t", t, x_t.shape, transition.has_steps)
    first, *_ = prediction.parameters
    check_same_device(logits=first, x_t=x_t, t=t, transition=transition, **others)
    return Model(reverse == "posterior_mean", first_step == "logits")


def is_too_narrow(prediction: Prediction, transition: Transition) -> bool:
    """Return whether the chain has probabilities too small for the dtype of the prediction."""
    return transition.needs_float64 and prediction.dtype != torch.float64


def contiguous(tokens: Tensor, dtype: torch.dtype = torch.int64) -> Tensor:
    """Return tokens or times as operations take them: int64, contiguous."""
    if tokens.dtype == dtype and tokens.is_contiguous():
        return tokens
    return tokens.to(dtype).contiguous()


def contiguous_times(transition: Transition, t: Tensor) -> Tensor:
    """Return times as chains take them, contiguous: int64, or float64 in continuous time."""
    return contiguous(t, transition.time_dtype)


def choose(
    impl: Impl,
    operation: str,
    transition: Transition,
    t: Tensor,
    first_time: int,
    mask: Tensor | None = None,
    **tokens: Tensor,
) -> str:
    """Return the implementation's name, after the checks of values that it does not make.

    The CPU kernels find bad indices on their way.
    """
    name = ops.implementation(impl, t.device, transition, operation=operation).name
    if not can_be_read(t):
        return name
    if not transition.has_steps:
        check_interval("t", t, includes_zero=first_time == 0)
    reads = _environment.CHECK or name == "reference"
    if transition.has_steps and (reads or transition.asks_tokens):
        check_range("t", t, first_time, transition.num_steps + 1)
    if reads:
        for key, value in tokens.items():
            counted = value if mask is None else value[mask]
            check_range(key, counted, 0, transition.num_classes)
    if _environment.CHECK and tokens.keys() == {"x0", "x_t"}:
        check_possible(transition, tokens["x0"], mask, tokens["x_t"], t)
    return name


def check_target(
    transition: Transition, s: Tensor | None, t: Tensor, shape: torch.Size
) -> Tensor | None:
    """Return the times that steps from t lead to, contiguous; None for t - 1."""
    if s is None:
        if not transition.has_steps:
            raise ValueError("s is needed: a chain in continuous time has no step of its own")
        return None
    check_times("s", s, shape, transition.has_steps)
    check_shape("s", s, tuple(t.shape))
    check_same_device(t=t, s=s)
    if can_be_read(t):
        _check_order(transition, s, t)
    return contiguous_times(transition, s)


def can_be_read(values: Tensor) -> bool:
    """Return whether to look at values costs no synchronization, and there are any."""
    on_cpu = values.device.type == "cpu" or _environment.CHECK
    return on_cpu and not (is_compiling() or derivatives.are_transformed())


def _check_order(transition: Transition, s: Tensor, t: Tensor) -> None:
    if transition.has_steps:
        check_range("t", t, 1, transition.num_steps + 1)
    s, t = contiguous_times(transition, s), contiguous_times(transition, t)
    bad = ~((s >= 0) & (s < t))
    if bool(bad.any()):
        where = tuple(int(i) for i in bad.nonzero()[0])
        got = f"s = {s[where].item()} with t = {t[where].item()}"
        raise IndexError(f"s must lie in [0, t), got {got}")
