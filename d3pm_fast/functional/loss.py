"""The hybrid loss: a term of the variational bound, and the cross-entropy beside it."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _environment, autograd, reference
from .._checks import (
    check_choice,
    check_data,
    check_mask,
    check_number,
    check_shape,
    check_token_weights,
    check_tokens,
    check_weight,
)
from ..autograd import LossOperation, counted
from ..chains import Transition
from ..choices import REDUCTIONS, ClassDim, FirstStep, Impl, Reduction, Reverse
from ..derivatives import Inputs, Items
from ..predictions import Predicted, Prediction, as_prediction
from ..records import Loss, Model, Weights
from ..reductions import reduced
from ..reference.logspace import compute_dtype, spread
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
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
    denominator: float | Tensor | None = None,
    with_terms: bool = False,
    class_dim: ClassDim = -1,
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
        logits: the denoiser's prediction of x_0, ``(B, *S, K)``; never modified. Of a
            :class:`Score` in its place the loss is the bound's density at t; with s, for bounds,
            the divergence of its step.
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
        weights: ``(B,)`` or ``(B, *S)``, any float: a factor of each token's loss, as the inverse
            of its time's probability. A token of weight 0 has loss and gradient 0. Not
            differentiable.
        reduction: ``"mean"`` over the tokens that count, ``"sum"``, ``"none"`` for ``(B, *S)``,
            or ``"batch"`` for ``(B,)``, the sum over positions.
        denominator: what ``"mean"`` divides the sum by, in place of how many tokens count: a
            number, or a tensor of shape ``()``, which is not read, as a count over all processes.
        with_terms: whether the result has one axis more, ``(3,)``, see :func:`loss_terms`.
        class_dim: where the logits have the classes: -1, or 1 for ``(B, K, *S)``.
        impl: which implementation serves the call.

    Returns:
        float64 for float64 logits, float32 for all others. NaN for a pair ``(x_0, x_t)`` that
        the chain cannot make.
    """
    prediction = as_prediction(logits, transition, class_dim)
    prediction.check_loss(transition, ce_weight)
    if isinstance(vb_weight, Tensor) or isinstance(ce_weight, Tensor):
        options: dict[str, Any] = {
            "reverse": reverse,
            "first_step": first_step,
            "mask": mask,
            "weights": weights,
            "reduction": reduction,
            "denominator": denominator,
            "class_dim": class_dim,
            "impl": impl,
        }
        term = partial(loss, transition, logits, x0, x_t, t, s, **options)
        bound = term(ce_weight=0.0)
        total = check_weight("vb_weight", vb_weight) * bound
        cross_entropy = torch.full_like(bound, torch.nan)
        if prediction.predicts_x0:
            cross_entropy = term(vb_weight=0.0, ce_weight=1.0)
            total = total + check_weight("ce_weight", ce_weight) * cross_entropy
        return torch.stack((total, bound, cross_entropy), dim=-1) if with_terms else total
    check_choice("reduction", reduction, REDUCTIONS)
    terms = Weights(check_number("vb_weight", vb_weight), check_number("ce_weight", ce_weight))
    shape = prediction.shape
    for key, tokens in (("x0", x0), ("x_t", x_t)):
        check_tokens(key, tokens, transition.num_classes, shape)
    check_shape("x_t", x_t, x0.shape)
    counts = None
    if mask is not None:
        check_mask(mask, x0.shape)
        counts = mask = mask.contiguous()
    if weights is not None:
        check_token_weights(weights, x0.shape)
    divided_by = denominator if isinstance(denominator, Tensor) else None
    others = {"x0": x0, "mask": mask, "weights": weights, "denominator": divided_by}
    model = check_model(transition, prediction, x_t, t, reverse, first_step, **others)
    is_narrow = is_too_narrow(prediction, transition)
    if is_narrow:
        prediction = prediction.double()
    if weights is not None:
        has_weight = spread(weights != 0, x0.shape)
        counts = has_weight if mask is None else mask & has_weight
    if counts is not None:
        prediction = prediction.masked(counts)
    if transition.has_steps or s is not None:
        s = check_target(transition, s, t, x_t.shape)
    has_own_law = s is not None and not prediction.predicts_x0
    asked = prediction.operations.p_posterior if has_own_law else prediction.operations.loss
    name = choose(impl, asked.name, transition, t, 1, counts, x0=x0, x_t=x_t)
    is_filled = prediction.classes.is_filled
    if (_environment.CHECK or name == "reference" or is_filled) and can_be_read(x0):
        check_data(x0 if counts is None else x0.where(counts, -1), transition.forbidden)
    served = prediction.served_by(name, asked.reads_classes_first(name, transition.structure))
    divisor = late = factors = None
    if denominator is not None:
        divisor = _divisor(denominator, reduction, x0.device)
        reduction = "sum"
        # The factors of tokens divide, but in float16, whose gradients would be too small.
        if prediction.dtype == torch.float16:
            divisor, late = None, divisor
    if weights is not None or divisor is not None:
        factors = _factors(weights, divisor, x0, compute_dtype(prediction.dtype))
    of = transition, name, model, terms, with_terms, served
    operation = _of_law(*of) if has_own_law else served.loss(_of_logits(*of))
    x0 = contiguous(x0)
    if is_filled:
        x0 = x0.masked_fill(x0 == transition.forbidden, -1)  # no class: the loss is NaN
    items = x0, mask, contiguous(x_t), contiguous_times(transition, t), s, factors
    value = autograd.loss(operation, reduction, served.parameters, items)
    if late is not None:
        value = value / late.to(value.dtype)
    if can_be_read(value):
        warn_where_nan(value, transition, *items[:4])
    return value.float() if is_narrow else value


class LossTerms(NamedTuple):
    """A loss, and what it is made of.

    Attributes:
        loss: ``vb_weight vb + ce_weight ce``, differentiable.
        vb: the bound's term, without ``vb_weight``; detached.
        ce: the cross-entropy, without ``ce_weight``; detached.
    """

    loss: Tensor
    vb: Tensor
    ce: Tensor


def loss_terms(*args: Any, **options: Any) -> LossTerms:
    """Return the loss and its two terms, from one pass over the logits.

    All three have the mask, the weights and the reduction of the loss. The terms are of all tokens
    that count, also where the loss need not look at a token.

    Args:
        args: as :func:`loss` has them.
        options: as :func:`loss` has them, without ``with_terms``.
    """
    value, *terms = loss(*args, **options, with_terms=True).unbind(-1)
    return LossTerms(value, *(term.detach() for term in terms))


def _divisor(denominator: float | Tensor, reduction: str, device: torch.device) -> Tensor:
    if reduction != "mean":
        raise ValueError(f"denominator is what a mean divides by, got reduction {reduction!r}")
    divisor = check_weight("denominator", denominator)
    if not isinstance(divisor, Tensor):
        if divisor <= 0:
            raise ValueError(f"denominator must be above 0, got {divisor}")
        return torch.full((), divisor, dtype=torch.float64, device=device)
    return divisor.detach()


def _factors(
    weights: Tensor | None, divisor: Tensor | None, like: Tensor, dtype: torch.dtype
) -> Tensor:
    """Return the factor of each token's loss, contiguous, for tokens like these."""
    one = torch.ones((), dtype=torch.float64, device=like.device)
    factors = one if weights is None else spread(weights, like.shape).double()
    factors = factors if divisor is None else factors / divisor
    return factors.to(dtype).expand(like.shape).contiguous()


def _of_logits(
    transition: Transition,
    name: str,
    model: Model,
    terms: Weights,
    with_terms: bool,
    prediction: Prediction,
) -> LossOperation:
    """Return the loss of logits, or of scores.

    Its items are x_0, the mask, x_t, t, s and the factors.
    """
    operations, structure = prediction.operations, transition.structure
    by_reference = operations.loss.kernel("reference", structure)

    def record(inputs: "Inputs", items: "Items") -> "Any":
        others = without_logits(transition, model, terms, with_terms, items)
        return prediction.loss_record(inputs, others)

    def value(inputs: "Inputs", items: "Items", reduction: "str") -> "Tensor":
        kernel = operations.loss.kernel(name, structure)
        return kernel(record(inputs, items), reduction)  # type: ignore[no-any-return]

    def with_gradient(inputs: "Inputs", items: "Items", reduction: "str", late: "bool") -> "Any":
        kernel = operations.loss_and_grad.kernel(name, structure)
        return kernel(record(inputs, items), reduction, late)

    def meaning(items: "tuple[Any, ...]") -> "Callable[..., Tensor]":
        x0, mask, x_t, step, *rest = without_logits(transition, model, terms, with_terms, items)
        tokens = x0, mask, x_t, reference.looked_up(step)
        return lambda *inputs: by_reference(
            prediction.loss_record(inputs, (*tokens, *rest)), "none"
        )

    gradient = None if name == "reference" else with_gradient
    return LossOperation(value, gradient, meaning, with_terms=with_terms)


def without_logits(
    transition: Transition, model: Model, terms: Weights, with_terms: bool, items: tuple[Any, ...]
) -> tuple[Any, ...]:
    """Return the fields of a loss's record that come after the logits."""
    x0, mask, x_t, t, s, factors = items
    step, is_density = transition.loss_record(t, s)
    step = transition.of_tokens(step, x_t=x_t)
    weights = terms if factors is None else Weights(terms.vb, terms.ce, factors)
    return x0, mask, x_t, step, model, weights, is_density, with_terms


def _of_law(
    transition: Transition,
    name: str,
    model: Model,
    terms: Weights,
    with_terms: bool,
    prediction: Prediction,
) -> LossOperation:
    """Return the loss of steps by the law that a prediction gives without an x_0, in PyTorch."""
    posterior = prediction.operations.p_posterior.kernel(name, transition.structure)

    def meaning(items: "tuple[Any, ...]") -> "Callable[..., Tensor]":
        _, _, x_t, t, s, _ = items
        of_law = prediction.step_record(transition, x_t, t, s)
        of = without_logits(transition, model, terms, with_terms, items)

        def value(scores: "Tensor") -> "Tensor":
            log_p = posterior(scores, x_t, of_law, model)
            return reference.score_divergence(Loss(scores, *of), "none", log_p)

        return value

    def value(inputs: "Inputs", items: "Items", reduction: "str") -> "Tensor":
        return reduced(meaning(items)(*inputs), reduction, counted(items), with_terms)

    return LossOperation(value, None, meaning, with_terms=with_terms)
