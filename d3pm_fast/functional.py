"""The operations as stateless functions over a transition: checked here, computed below.

Shapes: tokens ``(B, *S)`` of any integer dtype with values in [0, K), S any number of position
axes, also none; ``t`` ``(B,)`` or, per token, ``(B, *S)``, in 1..T; ``logits`` ``(B, *S, K)``,
float32, float64, bfloat16 or float16, ``-inf`` for a forbidden class; or in their place a pair
``(loc, log_scale)``, see :class:`Logistic`, or, to draw from, :class:`Shaped` logits. float64
logits are calculated in float64, all others in float32, or, with a chain that has a class entered
with a probability below 1e-18 (``transition.needs_float64``), in float64 too.

All functions take ``impl``, see :func:`d3pm_fast.implementation`, and raise

* ``TypeError`` for a wrong type or dtype,
* ``ValueError`` for a wrong shape, device or option,
* ``IndexError`` for a class or a time out of range (on the CPU, and anywhere with
  ``D3PM_FAST_CHECK=1`` in the environment at import; elsewhere such a token's result is NaN, and
  a draw -1).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from . import _environment, autograd, derivatives, ops, predicted, reference
from ._checks import (
    FLOAT_DTYPES,
    check_choice,
    check_count,
    check_drawn,
    check_logistic,
    check_logits,
    check_mask,
    check_no_nan,
    check_number,
    check_range,
    check_same_device,
    check_shape,
    check_shaped,
    check_times,
    check_tokens,
    check_weight,
)
from ._impossible import check_possible, warn_where_nan
from ._random import of_generator
from .chains import Transition
from .chains.base import running_sums
from .choices import FIRST_STEPS, REDUCTIONS, REVERSES, FirstStep, Impl, Reduction, Reverse
from .chunks import Chunks
from .logistic import Logistic, LogisticMaker
from .reference.draws import draw_base
from .reference.philox import uniforms
from .shaped import Shaped, arguments_of

__all__ = [
    "Logistic",
    "Shaped",
    "draw_seeds",
    "logistic_logits",
    "loss",
    "p_posterior",
    "p_sample",
    "prior",
    "q_posterior",
    "q_sample",
    "sample_prior",
]

Prediction = Tensor | tuple[Any, ...]
# In quotes on inner functions: the compilers of PyTorch 2.4 to 2.6 cannot build it.
ChainOf = Callable[[Transition, Tensor, Tensor | None], tuple[Any, ...]]


def loss(
    transition: Transition,
    logits: Prediction,
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
    ``KL(q(x_s | x_t, x_0) || p(x_s | x_t))``, for s = 0 ``-log p(x_0 | x_t)``.

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
    if isinstance(logits, Shaped):
        raise TypeError("logits must be those of the model in a loss, got Shaped ones")
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
    vb_weight, ce_weight = (
        check_number(name, weight)
        for name, weight in (("vb_weight", vb_weight), ("ce_weight", ce_weight))
    )
    for key, tokens in (("x0", x0), ("x_t", x_t)):
        check_tokens(key, tokens, transition.num_classes, _shape_of(logits))
    check_shape("x_t", x_t, x0.shape)
    if mask is not None:
        check_mask(mask, x0.shape)
        mask = mask.contiguous()
    model = _check_model(transition, logits, x_t, t, reverse, first_step, x0=x0, mask=mask)
    is_narrow = _is_too_narrow(logits, transition)
    if is_narrow:
        logits = _widened(logits)
    s = _check_target(transition, s, t, x_t.shape)
    name = _choose(impl, "loss", _dtype_of(logits), transition, t, 1, mask, x0=x0, x_t=x_t)
    kernels = ops.operations(name, transition)
    items = _contiguous(x0), mask, _contiguous(x_t), _contiguous(t), s

    def arguments(chain: "ChainOf", *items: Any) -> "tuple[Any, ...]":
        x0, mask, x_t, t, s = items
        return x0, mask, x_t, *chain(transition, t, s), *model, vb_weight, ce_weight

    if mask is not None and not isinstance(logits, Tensor):
        # No gradient of what does not count, whatever it is.
        logits = tuple(p.where(mask, 0) if isinstance(p, Tensor) else p for p in logits)
    prediction = _prediction(logits, transition, name)
    if isinstance(prediction, Tensor):
        operation = predicted.loss_of_logits(kernels, arguments)
        fused = "none" if reduction == "batch" else reduction
        value = autograd.loss(operation, fused, (prediction,), items)
        value = _reduced(value, mask, reduction) if reduction == "batch" else value
    else:
        maker = _logistic_maker(transition, prediction, name)
        chunks = _chunks_of(transition, x0, maker.logits)
        operation = predicted.loss_of_logistic(kernels, arguments, maker, chunks)
        value = autograd.loss(operation, "none", prediction[:2], items)
        value = _reduced(value, mask, reduction)
    if _can_be_read(value):
        warn_where_nan(value, transition, *items[:4])
    return value.float() if is_narrow else value


def q_posterior(
    transition: Transition,
    x0: Tensor,
    x_t: Tensor,
    t: Tensor,
    s: Tensor | None = None,
    *,
    dtype: torch.dtype | None = None,
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
        impl: which implementation serves the call.

    Returns:
        ``(B, *S, K)``: -inf where the posterior is zero, NaN for a pair ``(x_0, x_t)`` that the
        chain cannot make.
    """
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if dtype not in FLOAT_DTYPES:
        raise TypeError(f"dtype must be float32, float64, bfloat16 or float16, got {dtype}")
    for key, tokens, others in (("x0", x0, x_t), ("x_t", x_t, x0)):
        shape = others.shape if isinstance(others, Tensor) else None
        check_tokens(key, tokens, transition.num_classes, shape)
    check_shape("x_t", x_t, tuple(x0.shape))
    check_times("t", t, x0.shape)
    check_same_device(x0=x0, x_t=x_t, t=t, transition=transition)
    s = _check_target(transition, s, t, x_t.shape)
    name = _choose(impl, "q_posterior", dtype, transition, t, 1, x0=x0, x_t=x_t)
    kernels = ops.operations(name, transition)
    args = _contiguous(x0), _contiguous(x_t), *kernels.chain(transition, _contiguous(t), s)
    calculated = torch.float64 if transition.needs_float64 else dtype
    return kernels.q_posterior(*args, transition.num_classes, calculated).to(dtype)  # type: ignore[no-any-return]


def p_posterior(
    transition: Transition,
    logits: Prediction,
    x_t: Tensor,
    t: Tensor,
    s: Tensor | None = None,
    *,
    reverse: Reverse = "joint",
    first_step: FirstStep = "posterior",
    impl: Impl = "auto",
) -> Tensor:
    """Return ``log p(x_s | x_t)``, in nats, differentiable in the logits (D3PM, eq. 4).

    s = t - 1 unless given.

    Args:
        transition: the chain.
        logits: the denoiser's prediction of x_0, ``(B, *S, K)``. Of :class:`Shaped` ones nothing
            is differentiable, and a gradient asked of them is a ``ValueError``.
        x_t: the corrupted data, ``(B, *S)``.
        t: times, ``(B,)`` or ``(B, *S)``, in 1..T.
        s: times that the steps lead to, the shape of t, in 0..t-1; t - 1 unless given.
        reverse: ``"joint"`` (eq. 4) or ``"posterior_mean"`` (the posteriors of all x_0,
            each with its predicted weight).
        first_step: the model of every step to s = 0: ``"posterior"`` treats it as any other step;
            ``"logits"`` takes the softmax itself, for every token.
        impl: which implementation serves the call.

    Returns:
        ``(B, *S, K)`` in the dtype of the logits; of parameters in their place, float32 or float64.
        NaN for every class where the logits have NaN, inf or nothing but -inf, or forbid all that
        leads to x_t. Where a single class leads to x_t, it has all the probability whatever the
        logits.
    """
    model = _check_model(transition, logits, x_t, t, reverse, first_step)
    if _is_too_narrow(logits, transition):
        options: dict[str, Any] = {"reverse": reverse, "first_step": first_step, "impl": impl}
        wide = p_posterior(transition, _widened(logits), x_t, t, s, **options)
        return wide.to(_dtype_of(logits) or torch.float32)
    if _environment.CHECK:
        check_no_nan("logits", logits)
    s = _check_target(transition, s, t, x_t.shape)
    name = _choose(impl, "p_posterior", _dtype_of(logits), transition, t, 1, x_t=x_t)
    kernels = ops.operations(name, transition)
    items = _contiguous(x_t), _contiguous(t), s

    def arguments(chain: "ChainOf", *items: Any) -> "tuple[Any, ...]":
        x_t, t, s = items
        return x_t, *chain(transition, t, s), *model

    if isinstance(logits, Shaped):
        _check_no_gradient(logits)
        return _apply(kernels.p_posterior, transition, logits, name, arguments, kernels, items)
    prediction = _prediction(logits, transition, name)
    if isinstance(prediction, Tensor):
        operation = predicted.p_posterior_of_logits(kernels, arguments)
        return autograd.differentiable(operation, (prediction,), items)
    maker = _logistic_maker(transition, prediction, name)
    chunks = _chunks_of(transition, x_t, maker.logits)
    operation = predicted.p_posterior_of_logistic(kernels, arguments, maker, chunks)
    return autograd.differentiable(operation, prediction[:2], items)


def q_sample(
    transition: Transition,
    x0: Tensor,
    t: Tensor,
    *,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
    seeds: Tensor | None = None,
    step: int = 0,
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
        impl: which implementation serves the call.

    Returns:
        ``(B, *S)`` in the dtype of x0.
    """
    check_tokens("x0", x0, transition.num_classes)
    check_times("t", t, x0.shape)
    if mask is not None:
        check_mask(mask, x0.shape)
    check_same_device(x0=x0, t=t, mask=mask, transition=transition)
    seeds = check_seeds(seeds, generator, x0)
    tokens = data = _contiguous(x0)
    if mask is not None:
        data = tokens.where(mask, 0)
    name = _choose(impl, "q_sample", None, transition, t, 0, x0=data)
    draw = ops.operations(name, transition).q_sample
    drawn: Tensor = draw(data, transition, _contiguous(t), seeds, step)
    return (drawn if mask is None else drawn.where(mask, tokens)).to(x0.dtype)


def p_sample(
    transition: Transition,
    logits: Prediction,
    x_t: Tensor,
    t: Tensor,
    s: Tensor | None = None,
    *,
    reverse: Reverse = "joint",
    first_step: FirstStep = "posterior",
    generator: torch.Generator | None = None,
    seeds: Tensor | None = None,
    step: int = 0,
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
        impl: which implementation serves the call.

    Returns:
        ``(B, *S)`` in the dtype of x_t. On a GPU -1, which is out of range wherever it goes on
        to, where a draw's logits have NaN, inf or nothing but -inf, or forbid all that leads to
        x_t; as uint8, 255.

    Raises:
        ValueError: on a CPU for such logits, with the token's index.
    """
    model = _check_model(transition, logits, x_t, t, reverse, first_step)
    if _is_too_narrow(logits, transition):
        logits = _widened(logits)
    if _environment.CHECK:
        check_no_nan("logits", logits)
    seeds = check_seeds(seeds, generator, x_t)
    s = _check_target(transition, s, t, x_t.shape)
    name = _choose(impl, "p_sample", _dtype_of(logits), transition, t, 1, x_t=x_t)
    kernels = ops.operations(name, transition)
    items = _contiguous(x_t), _contiguous(t), s, seeds

    def arguments(chain: "ChainOf", *items: Any) -> "tuple[Any, ...]":
        x_t, t, s, seeds = items
        return x_t, *chain(transition, t, s), *model, seeds, step

    fused = getattr(kernels, "shaped_p_sample", None)
    with torch.no_grad():
        if isinstance(logits, Shaped) and fused is not None:
            given, *shaping = arguments_of(logits)
            drawn = fused(given, *arguments(kernels.chain, *items), *shaping)
        else:
            drawn = _apply(kernels.p_sample, transition, logits, name, arguments, kernels, items)
    if _environment.CHECK:
        check_drawn(drawn, x_t, partial(row_of, logits, transition))
    return drawn.to(x_t.dtype)  # type: ignore[no-any-return]


def logistic_logits(
    loc: Tensor,
    log_scale: Tensor,
    num_classes: int,
    *,
    edge_corrected: bool = False,
    impl: Impl = "auto",
) -> Tensor:
    """Return the logits of a truncated discretized logistic distribution (D3PM, appendix A.8).

    The log of the mass that a logistic distribution around ``loc``, of scale
    ``exp(log_scale - 2)``, has in each of K bins of width ``2 / (K - 1)``, centred on
    ``linspace(-1, 1, K)``: not normalized, as the mass outside of the bins is left out. Finite
    however far the tail, differentiable in both parameters.

    Args:
        loc: ``(B, *S)``, float32, float64, bfloat16 or float16.
        log_scale: of the shape and the dtype of loc.
        num_classes: K, at least 2.
        edge_corrected: whether the first and the last bin take all the mass outside of them, so
            that the masses sum to 1. Not in the paper.
        impl: which implementation serves the call.

    Returns:
        ``(B, *S, K)``: float64 for float64 parameters, float32 for all others.
    """
    check_logistic((loc, log_scale))
    num_classes = check_count("num_classes", num_classes, least=2)
    name = ops.implementation(impl, loc.device).name
    kernels = ops.logistic.operations(name)
    if kernels is None:
        return reference.logistic_logits(loc, log_scale, num_classes, edge_corrected)
    operation = predicted.logistic_logits(kernels, num_classes, edge_corrected)
    return autograd.differentiable(operation, (loc.contiguous(), log_scale.contiguous()))


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
    if _can_be_read(x0):
        check_range("x0", x0, 0, transition.num_classes)
    is_class = (x0 >= 0) & (x0 < transition.num_classes)
    terms = transition.prior()[x0.long().where(is_class, 0)].where(is_class, torch.nan)
    return sum_positions(terms if mask is None else terms.where(mask, 0))


def sample_prior(
    transition: Transition, shape: tuple[int, ...], seeds: Tensor, step: int = 0
) -> Tensor:
    """Draw x_T from the stationary distribution, int64 ``(B, *S)``.

    Args:
        transition: the chain.
        shape: ``(B, *S)``.
        seeds: int64 ``(B,)``: an item's draw depends on its own seed, ``step`` and the position in
            the item alone (:func:`d3pm_fast.draw_seeds`).
        step: a counter in [0, 2^63) that tells draws of the same seeds apart.
    """
    _, draw = uniforms(seeds, step, math.prod(shape))
    return draw_base(draw, running_sums(transition.stationary()), transition.num_classes).view(
        shape
    )


def sum_positions(tokens: Tensor) -> Tensor:
    """Return the sum of ``(B, *S)`` over the positions, ``(B,)``."""
    return tokens if tokens.ndim == 1 else tokens.flatten(1).sum(dim=1)


def draw_seeds(batch: int, generator: torch.Generator | None = None) -> Tensor:
    """Return a random seed for each item.

    Two calls for 3 and 5 items give the seeds that one call for 8 gives.

    Args:
        batch: how many.
        generator: where they come from; None for PyTorch's default generator of the CPU.

    Returns:
        int64 ``(batch,)``, on the generator's device.
    """
    device = "cpu" if generator is None else generator.device
    bounds = torch.iinfo(torch.int64)
    options = of_generator(generator)
    return torch.randint(bounds.min, bounds.max, (batch,), device=device, **options)


def _reduced(token_loss: Tensor, mask: Tensor | None, reduction: Reduction) -> Tensor:
    if reduction == "none":
        return token_loss
    if reduction == "batch":
        return sum_positions(token_loss)
    total = token_loss.sum(dtype=torch.float64).to(token_loss.dtype)
    if reduction == "sum":
        return total
    return total / (token_loss.numel() if mask is None else mask.sum())


def row_of(prediction: Prediction, transition: Transition, token: tuple[int, ...]) -> Tensor:
    """Return the logits of a token, ``(K,)``, of whatever is predicted."""
    if isinstance(prediction, Tensor):
        return prediction[token]
    if isinstance(prediction, Shaped):
        given = arguments_of(prediction)
        other = None if given[1] is None else given[1][token]
        return reference.shaped_logits(given[0][token], other, *given[2:])
    loc, log_scale, edge_corrected = Logistic(*prediction)
    parameters = loc[token], log_scale[token]
    return reference.logistic_logits(*parameters, transition.num_classes, edge_corrected)


def _apply(
    operation: Callable[..., Tensor],
    transition: Transition,
    logits: Prediction,
    name: str,
    arguments: Callable[..., tuple[Any, ...]],
    kernels: Any,
    items: tuple[Any, ...],
) -> Tensor:
    """Return an operation's result, without a gradient, on whatever is predicted."""

    def on_logits(logits: Tensor, *items: Any) -> Tensor:
        return operation(logits, *arguments(kernels.chain, *items))

    if isinstance(logits, Shaped):
        first, second, *options = arguments_of(logits)
        make = ops.shaped.operation(name)
        chunks = _chunks_of(transition, items[0], lambda *both: make(*both, *options))
        return chunks.apply(on_logits, (first, second), items)
    prediction = _prediction(logits, transition, name)
    if isinstance(prediction, Tensor):
        return on_logits(prediction, *items)
    maker = _logistic_maker(transition, prediction, name)
    chunks = _chunks_of(transition, items[0], maker.logits)
    return chunks.apply(on_logits, prediction[:2], items)


def _prediction(logits: Prediction, transition: Transition, name: str) -> Tensor | Logistic:
    """Return what is predicted, contiguous: logits where nothing takes other than them."""
    if isinstance(logits, Tensor):
        return logits.contiguous()
    loc, log_scale, edge_corrected = Logistic(*logits)
    if ops.logistic.operations(name) is None or derivatives.are_asked(loc, log_scale):
        return reference.logistic_logits(loc, log_scale, transition.num_classes, edge_corrected)
    return Logistic(loc.contiguous(), log_scale.contiguous(), edge_corrected)


def _logistic_maker(transition: Transition, prediction: Logistic, name: str) -> LogisticMaker:
    operations = ops.logistic.operations(name)
    assert operations is not None
    return LogisticMaker(transition.num_classes, prediction.edge_corrected, operations)


def _chunks_of(transition: Transition, tokens: Tensor, logits: Callable[..., Tensor]) -> Chunks:
    return Chunks(logits, tokens[:1].numel() * transition.num_classes * 4)


def _contiguous(tokens: Tensor) -> Tensor:
    if tokens.dtype == torch.int64 and tokens.is_contiguous():
        return tokens
    return tokens.to(torch.int64).contiguous()


def _check_model(
    transition: Transition,
    logits: Prediction,
    x_t: Tensor,
    t: Tensor,
    reverse: Reverse,
    first_step: FirstStep,
    **others: Tensor | None,
) -> tuple[bool, bool]:
    check_choice("reverse", reverse, REVERSES)
    check_choice("first_step", first_step, FIRST_STEPS)
    check_tokens("x_t", x_t, transition.num_classes, _shape_of(logits))
    if isinstance(logits, Shaped):
        check_shaped(*logits)
        logits = logits.logits
    if isinstance(logits, tuple):
        check_logistic(logits)
        prediction = logits[0]
        check_shape("loc", prediction, x_t.shape)
    else:
        prediction = logits
        check_logits("logits", logits, x_t.shape, transition.num_classes)
    check_times("t", t, x_t.shape)
    check_same_device(logits=prediction, x_t=x_t, t=t, transition=transition, **others)
    return reverse == "posterior_mean", first_step == "logits"


def _check_no_gradient(shaped: Shaped) -> None:
    tensors = [tensor for tensor in shaped[:2] if tensor is not None]
    if derivatives.are_asked(*tensors) or (
        torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    ):
        raise ValueError(
            "p_posterior of Shaped logits has no gradient: give detached ones, "
            "or call it under torch.no_grad()"
        )


def check_seeds(seeds: Tensor | None, generator: torch.Generator | None, tokens: Tensor) -> Tensor:
    """Return the seed of each item of the tokens, drawn where none are given."""
    if seeds is None:
        return draw_seeds(len(tokens), generator).to(tokens.device)
    if generator is not None:
        raise ValueError("give seeds or a generator, not both")
    check_shape("seeds", seeds, (len(tokens),))
    if seeds.dtype != torch.int64:
        raise TypeError(f"seeds must be an int64 tensor, got {seeds.dtype}")
    return seeds.contiguous()


def _shape_of(logits: Prediction) -> tuple[int, ...] | None:
    """Return the shape (B, *S) of what is predicted, as far as it is one."""
    if isinstance(logits, Tensor):
        return tuple(logits.shape[:-1])
    first = logits[0] if isinstance(logits, tuple) and logits else None
    if not isinstance(first, Tensor):
        return None
    return tuple(first.shape[:-1] if isinstance(logits, Shaped) else first.shape)


def _dtype_of(logits: Prediction) -> torch.dtype | None:
    return logits.dtype if isinstance(logits, Tensor) else None


def _is_too_narrow(logits: Prediction, transition: Transition) -> bool:
    """Return whether the chain has probabilities too small for the dtype of the logits."""
    dtype = logits.dtype if isinstance(logits, Tensor) else logits[0].dtype
    return transition.needs_float64 and dtype != torch.float64


def _widened(logits: Prediction) -> Prediction:
    """Return what is predicted in float64."""
    if isinstance(logits, Tensor):
        return logits.double()
    parts: list[Any] = [part.double() if isinstance(part, Tensor) else part for part in logits]
    return Shaped(*parts) if isinstance(logits, Shaped) else Logistic(*parts)


def _choose(
    impl: Impl,
    operation: str,
    dtype: torch.dtype | None,
    transition: Transition,
    t: Tensor,
    first_time: int,
    mask: Tensor | None = None,
    **tokens: Tensor,
) -> str:
    """Return the implementation's name, after the checks of values that it does not make.

    The CPU kernels find bad indices on their way.
    """
    name = ops.implementation(impl, t.device, transition, operation=operation, dtype=dtype).name
    if not _can_be_read(t):
        return name
    if _environment.CHECK or name == "reference":
        check_range("t", t, first_time, transition.num_steps + 1)
        for key, value in tokens.items():
            counted = value if mask is None else value[mask]
            check_range(key, counted, 0, transition.num_classes)
    if _environment.CHECK and tokens.keys() == {"x0", "x_t"}:
        check_possible(transition, tokens["x0"], mask, tokens["x_t"], t)
    return name


def _check_target(
    transition: Transition, s: Tensor | None, t: Tensor, shape: torch.Size
) -> Tensor | None:
    """Return the times that steps from t lead to, contiguous; None for t - 1."""
    if s is None:
        return None
    check_times("s", s, shape)
    check_shape("s", s, tuple(t.shape))
    check_same_device(t=t, s=s)
    if _can_be_read(t):
        _check_order(transition, s, t)
    return _contiguous(s)


def _can_be_read(values: Tensor) -> bool:
    """Return whether to look at values costs no synchronization, and there are any."""
    on_cpu = values.device.type == "cpu" or _environment.CHECK
    return on_cpu and not (is_compiling() or derivatives.are_transformed())


def _check_order(transition: Transition, s: Tensor, t: Tensor) -> None:
    check_range("t", t, 1, transition.num_steps + 1)
    bad = (s < 0) | (s.long() >= t.long())
    if bool(bad.any()):
        where = tuple(int(i) for i in bad.nonzero()[0])
        raise IndexError(f"s must lie in [0, t), got s = {int(s[where])} with t = {int(t[where])}")
