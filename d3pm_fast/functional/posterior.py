"""The posterior of the chain, and the model's reverse step, which is differentiable."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import _environment, autograd, ops, reference
from .._checks import (
    FLOAT_DTYPES,
    check_choice,
    check_same_device,
    check_shape,
    check_times,
    check_tokens,
)
from ..chains import Transition
from ..choices import CLASS_DIMS, ClassDim, FirstStep, Impl, Reverse
from ..derivatives import Differentiable, Inputs, Items
from ..predictions import Predicted, Prediction, as_prediction
from ..records import Model
from .arguments import (
    check_model,
    check_target,
    choose,
    contiguous,
    contiguous_times,
    is_too_narrow,
)

# In quotes on inner functions: the compilers of PyTorch 2.4 to 2.6 cannot build annotations.


def q_posterior(
    transition: Transition,
    x0: Tensor,
    x_t: Tensor,
    t: Tensor,
    s: Tensor | None = None,
    *,
    dtype: torch.dtype | None = None,
    class_dim: ClassDim = -1,
    impl: Impl = "auto",
) -> Tensor:
    """Return ``log q(x_s | x_t, x_0)``, in nats; s = t - 1 unless given (D3PM, eq. 3).

    Args:
        transition: the chain.
        x0: the data, ``(B, *S)``.
        x_t: the corrupted data, ``(B, *S)``.
        t: times, ``(B,)`` or ``(B, *S)``, in 1..T.
        s: times that the steps lead to, the shape of t, in 0..t-1; t - 1 unless given.
        dtype: of the result; None for PyTorch's default dtype.
        class_dim: where the result has the classes: -1, or 1 for ``(B, K, *S)``, as a view.
        impl: which implementation serves the call.

    Returns:
        ``(B, *S, K)``: -inf where the posterior is zero, NaN for a pair ``(x_0, x_t)`` that the
        chain cannot make.
    """
    check_choice("class_dim", class_dim, CLASS_DIMS)
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if dtype not in FLOAT_DTYPES:
        raise TypeError(f"dtype must be float32, float64, bfloat16 or float16, got {dtype}")
    for key, tokens, others in (("x0", x0, x_t), ("x_t", x_t, x0)):
        shape = others.shape if isinstance(others, Tensor) else None
        check_tokens(key, tokens, transition.num_classes, shape)
    check_shape("x_t", x_t, tuple(x0.shape))
    check_times("t", t, x0.shape, transition.has_steps)
    check_same_device(x0=x0, x_t=x_t, t=t, transition=transition)
    s = check_target(transition, s, t, x_t.shape)
    name = choose(impl, "q_posterior", transition, t, 1, x0=x0, x_t=x_t)
    kernel = ops.q_posterior.kernel(name, transition.structure)
    calculated = torch.float64 if transition.needs_float64 else dtype
    step = transition.step_record(contiguous_times(transition, t), s)
    step = transition.of_tokens(step, x0, x_t)
    log_q: Tensor = kernel(contiguous(x0), contiguous(x_t), step, calculated)
    log_q = log_q.to(dtype)
    return log_q if class_dim == -1 else log_q.movedim(-1, class_dim)


def p_posterior(
    transition: Transition,
    logits: Predicted,
    x_t: Tensor,
    t: Tensor,
    s: Tensor | None = None,
    *,
    reverse: Reverse = "joint",
    first_step: FirstStep = "posterior",
    class_dim: ClassDim = -1,
    impl: Impl = "auto",
) -> Tensor:
    """Return ``log p(x_s | x_t)``, in nats, differentiable in the logits (D3PM, eq. 4).

    s = t - 1 unless given.

    Args:
        transition: the chain.
        logits: the denoiser's prediction of x_0, ``(B, *S, K)``. Of :class:`Shaped` ones nothing
            is differentiable, and a gradient asked of them is a ``ValueError``. Of
            :class:`Sharded` ones the result has this rank's classes.
        x_t: the corrupted data, ``(B, *S)``.
        t: times, ``(B,)`` or ``(B, *S)``, in 1..T.
        s: times that the steps lead to, the shape of t, in 0..t-1; t - 1 unless given.
        reverse: ``"joint"`` (eq. 4) or ``"posterior_mean"`` (the posteriors of all x_0,
            each with its predicted weight).
        first_step: the model of every step to s = 0: ``"posterior"`` treats it as any other step;
            ``"logits"`` takes the softmax itself, for every token.
        class_dim: where logits and result have the classes: -1, or 1 for ``(B, K, *S)``. The
            result is then a view.
        impl: which implementation serves the call.

    Returns:
        ``(B, *S, K)`` in the dtype of the logits; of parameters in their place, float32 or float64.
        NaN for every class where the logits have NaN, inf or nothing but -inf, or forbid all that
        leads to x_t. Where a single class leads to x_t, it has all the probability whatever the
        logits.
    """
    prediction = as_prediction(logits, transition, class_dim)
    check_tokens("x_t", x_t, transition.num_classes, prediction.shape)
    model = check_model(transition, prediction, x_t, t, reverse, first_step)
    prediction = prediction.whole()
    dtype = prediction.result_dtype
    if is_too_narrow(prediction, transition):
        prediction = prediction.double()
    if _environment.CHECK:
        prediction.check_no_nan()
    prediction.check_gradient()
    s = check_target(transition, s, t, x_t.shape)
    name = choose(impl, prediction.operations.p_posterior.name, transition, t, 1, x_t=x_t)
    served = prediction.served_by(name)
    operation = served.differentiable(_of_logits(transition, name, model, served))
    items = contiguous(x_t), contiguous_times(transition, t), s
    log_p = autograd.differentiable(operation, served.parameters, items).to(dtype)
    log_p = prediction.result(log_p)
    return log_p if class_dim == -1 else log_p.movedim(-1, class_dim)


def _of_logits(
    transition: Transition, name: str, model: Model, prediction: Prediction
) -> Differentiable:
    """Return ``log p(x_s | x_t)`` of logits, or of scores; its items are x_t, t and s."""
    operations, structure = prediction.operations, transition.structure
    kernel = operations.p_posterior.kernel(name, structure)
    by_reference = operations.p_posterior.kernel("reference", structure)

    def value(inputs: "Inputs", items: "Items") -> "Tensor":
        return kernel(*inputs, *step_of(items), model)  # type: ignore[no-any-return]

    def gradient(inputs: "Inputs", items: "Items", upstream: "Tensor") -> "Inputs":
        assert operations.p_posterior_grad is not None
        pull = operations.p_posterior_grad.kernel(name, structure)
        return (pull(*inputs, *step_of(items), model, upstream.contiguous()),)

    def meaning(items: "Items") -> "Callable[..., Tensor]":
        x_t, step = step_of(items)
        found = reference.looked_up(step)
        return lambda logits: by_reference(logits, x_t, found, model)

    def step_of(items: "tuple[Any, ...]") -> "tuple[Tensor, Any]":
        x_t, t, s = items
        return x_t, prediction.step_record(transition, x_t, t, s)

    return Differentiable(value, gradient if name != "reference" else None, meaning)
