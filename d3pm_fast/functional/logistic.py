"""The logits of a discretized logistic distribution."""

from collections.abc import Callable

from torch import Tensor

from .. import autograd, ops, reference
from .._checks import check_count
from ..choices import Impl
from ..derivatives import Differentiable, Inputs, Items
from ..predictions.logistic import check_logistic

# In quotes on inner functions: the compilers of PyTorch 2.4 to 2.6 cannot build annotations.


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
    if not ops.logistic_gradient.is_served(name):
        return reference.logistic_logits(loc, log_scale, num_classes, edge_corrected)
    make = ops.logistic_logits.kernel(name)
    pull = ops.logistic_gradient.kernel(name)

    def value(inputs: "Inputs", _items: "Items") -> "Tensor":
        return make(*inputs, num_classes, edge_corrected)  # type: ignore[no-any-return]

    def gradient(inputs: "Inputs", _items: "Items", upstream: "Tensor") -> "Inputs":
        return pull(*inputs, upstream.contiguous(), edge_corrected)  # type: ignore[no-any-return]

    def meaning(_items: "Items") -> "Callable[..., Tensor]":
        def logits(loc: "Tensor", log_scale: "Tensor") -> "Tensor":
            return reference.logistic_logits(loc, log_scale, num_classes, edge_corrected)

        return logits

    operation = Differentiable(value, gradient, meaning)
    return autograd.differentiable(operation, (loc.contiguous(), log_scale.contiguous()))
