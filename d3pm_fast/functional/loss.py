"""The hybrid loss: a term of the variational bound, and the cross-entropy beside it."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from .. import autograd, ops, reference
from .._checks import (
    check_choice,
    check_mask,
    check_number,
    check_shape,
    check_tokens,
    check_weight,
)
from ..autograd import LossOperation
from ..chains import Transition
from ..choices import REDUCTIONS, FirstStep, Impl, Reduction, Reverse
from ..derivatives import Inputs, Items
from ..predictions import Predicted, as_prediction
from ..records import Loss, Model, Weights
from .arguments import (
    can_be_read,
    check_model,
    check_target,
    choose,
    contiguous,
    contiguous_times,
    is_too_narrow,
)
from .impossible import warn_where_nan

# In quotes on inner functions: the compilers of PyTorch 2.4 to 2.6 cannot build annotations.


def loss(
    transition: Transition,
    logits: Predicted,
    x0: Tensor,
    x_t: Tensor,
    t: Tensor,
    s: Tensor | None = None,
    *,
    reverse: Reverse = "joint",
    first_step: FirstStep = "posterior",
    vb_weight: float | Tensor = 1.0,
    ce_weight: float | Tensor = 0.0,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
    impl: Impl = "auto",
) -> Tensor:
    """Return ``vb_weight L_{t-1} + ce_weight (-log softmax(logits)[x_0])``, in nats.

    ``L_{t-1} = KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t))`` for t >= 2 and
    ``L_0 = -log p(x_0 | x_1)`` for t = 1 (D3PM, eq. 1 and 5). Exact: nothing is added inside a
    logarithm. Averaged over tokens and over t ~ U(1..T), T times the term is the bound's sum.
    With ``s`` the step skips the times between: the term is
    ``KL(q(x_s | x_t, x_0) || p(x_s | x_t))``, for s = 0 ``-log p(x_0 | x_t)``. In continuous time
    t and s are floats in [0, 1], and without s the term is the bound's density at t, whose
    integral over t is the bound.

    Args:
        transition: the chain; its tables on the device of the logits.
        logits: the denoiser's prediction of x_0, ``(B, *S, K)``; never modified.
        x0: the data, ``(B, *S)``.
        x_t: the corrupted data, ``(B, *S)``.
        t: times, ``(B,)`` or ``(B, *S)``, in 1..T.
        s: times that the steps lead to, the shape of t, in 0..t-1; t - 1 unless given.
        reverse: ``"joint"`` (eq. 4) or ``"posterior_mean"`` (the posteriors of all x_0,
            each with its predicted weight). Use one for the loss and the sampler.
        first_step: ``p(x_0 | x_1)``, and of every step to s = 0: ``"posterior"`` treats it as
            any other step; ``"logits"`` takes the softmax itself, for every token, so that L_0
            is the cross-entropy, as in the paper's code.
        vb_weight: weight of the bound's term.
        ce_weight: weight of the cross-entropy (the paper's lambda). A tensor of shape ``()`` in
            place of either number is not read, so that it may change in compiled code and may
            be learned; the two terms then take a pass over the logits each.
        mask: bool ``(B, *S)``, True where a token counts. The other tokens have loss and
            gradient 0, and their x0 and x_t may hold anything.
        reduction: ``"mean"`` over the tokens that count, ``"sum"``, ``"none"`` for ``(B, *S)``,
            or ``"batch"`` for ``(B,)``, the sum over positions.
        impl: which implementation serves the call.

    Returns:
        float64 for float64 logits, float32 for all others. NaN for a pair ``(x_0, x_t)`` that
        the chain cannot make.
    """
    prediction = as_prediction(logits, transition.num_classes)
    prediction.check_model()
    if isinstance(vb_weight, Tensor) or isinstance(ce_weight, Tensor):
        options: dict[str, Any] = {
            "reverse": reverse,
            "first_step": first_step,
            "mask": mask,
            "impl": impl,
        }
        term = partial(loss, transition, logits, x0, x_t, t, s, reduction=reduction, **options)
        return check_weight("vb_weight", vb_weight) * term(vb_weight=1.0, ce_weight=0.0) + (
            check_weight("ce_weight", ce_weight) * term(vb_weight=0.0, ce_weight=1.0)
        )
    check_choice("reduction", reduction, REDUCTIONS)
    weights = Weights(check_number("vb_weight", vb_weight), check_number("ce_weight", ce_weight))
    shape = prediction.shape
    for key, tokens in (("x0", x0), ("x_t", x_t)):
        check_tokens(key, tokens, transition.num_classes, shape)
    check_shape("x_t", x_t, x0.shape)
    if mask is not None:
        check_mask(mask, x0.shape)
        mask = mask.contiguous()
    others = {"x0": x0, "mask": mask}
    model = check_model(transition, prediction, x_t, t, reverse, first_step, **others)
    is_narrow = is_too_narrow(prediction, transition)
    if is_narrow:
        prediction = prediction.double()
    if mask is not None:
        prediction = prediction.masked(mask)
    if transition.has_steps or s is not None:
        s = check_target(transition, s, t, x_t.shape)
    name = choose(impl, "loss", transition, t, 1, mask, x0=x0, x_t=x_t)
    served = prediction.served_by(name)
    operation = served.loss(_of_logits(transition, name, model, weights))
    items = contiguous(x0), mask, contiguous(x_t), contiguous_times(transition, t), s
    value = autograd.loss(operation, reduction, served.parameters, items)
    if can_be_read(value):
        warn_where_nan(value, transition, *items[:4])
    return value.float() if is_narrow else value


def _of_logits(transition: Transition, name: str, model: Model, weights: Weights) -> LossOperation:
    """Return the loss of logits; its items are x_0, the mask, x_t, t and s."""

    def record(inputs: "Inputs", items: "tuple[Any, ...]") -> "Loss[Any]":
        x0, mask, x_t, t, s = items
        (logits,) = inputs
        step, is_density = transition.loss_record(t, s)
        return Loss(logits, x0, mask, x_t, step, model, weights, is_density)

    def value(inputs: "Inputs", items: "Items", reduction: "str") -> "Tensor":
        kernel = ops.loss.kernel(name, transition.structure)
        return kernel(record(inputs, items), reduction)  # type: ignore[no-any-return]

    def with_gradient(inputs: "Inputs", items: "Items", reduction: "str", late: "bool") -> "Any":
        kernel = ops.loss_and_grad.kernel(name, transition.structure)
        return kernel(record(inputs, items), reduction, late)

    def meaning(items: "tuple[Any, ...]") -> "Callable[..., Tensor]":
        *tokens, t, s = items
        step, is_density = transition.loss_record(t, s)
        rest = *tokens, reference.looked_up(step), model, weights, is_density
        return lambda logits: reference.loss(Loss(logits, *rest), "none")

    return LossOperation(value, None if name == "reference" else with_gradient, meaning)
