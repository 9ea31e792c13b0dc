"""A prediction of x_0 by two numbers a token, in place of K logits."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import derivatives, reference
from .._checks import check_float, check_no_nan, check_same_device, check_shape
from ..ops import logistic_gradient, logistic_logits
from ..reference.logspace import compute_dtype
from .logits import LogitsPrediction
from .prediction import Classes, Prediction

__all__ = ["Logistic"]


class Logistic(NamedTuple):
    """A truncated discretized logistic distribution for each token (D3PM, appendix A.8).

    Wherever logits are taken it may stand in their place, and so may the pair
    ``(loc, log_scale)``; see :func:`d3pm_fast.functional.logistic_logits`.

    Attributes:
        loc: ``(B, *S)``, float32, float64, bfloat16 or float16; the classes span [-1, 1].
        log_scale: of the shape and the dtype of loc.
        edge_corrected: whether the first and the last class take all the mass outside of them.
    """

    loc: Tensor
    log_scale: Tensor
    edge_corrected: bool = False


class LogisticPrediction(Prediction):
    """The parameters of logistic distributions; their gradients are in the compute dtype."""

    def __init__(
        self, given: tuple[Any, ...], classes: Classes, implementation: str = "reference"
    ) -> None:
        self.given, self.classes = given, classes
        self._implementation = implementation

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of the tokens."""
        first = self.given[0] if self.given else None
        return tuple(first.shape) if isinstance(first, Tensor) else None

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """Locations and logarithms of scales."""
        return self.given[:2]

    def check(self, shape: torch.Size) -> None:
        """Raise unless both parameters have the shape of the tokens."""
        check_logistic(self.given)
        check_shape("loc", self.given[0], shape)

    def check_no_nan(self) -> None:
        """Raise for a NaN."""
        check_no_nan("logits", self.given)

    def double(self) -> LogisticPrediction:
        """Return it in float64."""
        return self._with(*(x.double() for x in self.parameters))

    def served_by(self, implementation: str, _reads_classes_first: bool = False) -> Prediction:
        """Return it contiguous; where nothing makes its logits in chunks, the logits."""
        is_served = logistic_gradient.is_served(implementation)
        if not is_served or derivatives.are_asked(*self.parameters):
            return LogitsPrediction(self.meaning(*self.parameters), self.classes)
        made = self._with(*(x.contiguous() for x in self.parameters))
        made._implementation = implementation
        return made

    def masked(self, mask: Tensor) -> LogisticPrediction:
        """Return it with 0 for parameters of tokens that do not count."""
        return self._with(*(x.where(mask, 0) for x in self.parameters))

    def logits(self, *parameters: Tensor) -> Tensor:
        """Return the logits of some items."""
        make = logistic_logits.kernel(self._implementation)
        made = make(*_to_compute(*parameters), self.num_classes, self._is_edge_corrected)
        return self.classes.filled(made)

    def pull(self, parameters: tuple[Tensor, ...], grad: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of both parameters from that of the logits."""
        pull = logistic_gradient.kernel(self._implementation)
        return pull(*_to_compute(*parameters), grad, self._is_edge_corrected)  # type: ignore[no-any-return]

    def meaning(self, *parameters: Tensor) -> Tensor:
        """Return the logits by plain PyTorch."""
        loc, log_scale = parameters
        options = self.num_classes, self._is_edge_corrected
        return self.classes.filled(reference.logistic_logits(loc, log_scale, *options))

    def row(self, token: tuple[int, ...]) -> Tensor:
        """Return the logits of a token."""
        return self.meaning(*(x[token] for x in self.parameters))

    @property
    def _is_edge_corrected(self) -> bool:
        return Logistic(*self.given).edge_corrected

    def _with(self, *parameters: Tensor) -> LogisticPrediction:
        return LogisticPrediction((*parameters, *self.given[2:]), self.classes)


def check_logistic(parameters: tuple[Any, ...]) -> None:
    """Raise unless they are float tensors of one shape (B, *S), one dtype and one device.

    A bool may follow them.
    """
    if len(parameters) not in (2, 3):
        raise ValueError(
            f"a tuple in place of logits must be (loc, log_scale), got one of {len(parameters)}"
        )
    loc, log_scale, *edge_corrected = parameters
    if edge_corrected and not isinstance(edge_corrected[0], bool):
        raise TypeError(f"edge_corrected must be a bool, got {type(edge_corrected[0]).__name__}")
    check_float("loc", loc)
    check_float("log_scale", log_scale)
    if loc.ndim == 0:
        raise ValueError("loc must have shape (B, *S), got a scalar")
    check_shape("log_scale", log_scale, tuple(loc.shape))
    if log_scale.dtype != loc.dtype:
        raise TypeError(f"log_scale must be {loc.dtype} as loc is, got {log_scale.dtype}")
    check_same_device(loc=loc, log_scale=log_scale)


def _to_compute(*parameters: Tensor) -> list[Tensor]:
    return [x.to(compute_dtype(x.dtype)) for x in parameters]
