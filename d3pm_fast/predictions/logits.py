"""A prediction of x_0 by its logits, which are there as a whole."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .._checks import check_logits, check_no_nan
from ..autograd import LossOperation
from ..derivatives import Differentiable, Items
from ..reference.logspace import whole
from .chunks import Result
from .prediction import Classes, Prediction


class LogitsPrediction(Prediction):
    """Logits ``(B, *S, K)``."""

    def __init__(self, given: Tensor, classes: Classes) -> None:
        self.given, self.classes = given, classes

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tokens."""
        return tuple(self.given.shape[:-1])

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """The logits."""
        return (self.given,)

    @property
    def result_dtype(self) -> torch.dtype:
        """Of log-probabilities: that of the logits."""
        return self.dtype

    def check(self, shape: torch.Size) -> None:
        """Raise unless they are float, of shape ``(*shape, K)``, or without the mask's."""
        check_logits("logits", self.given, shape, self.classes)

    def check_no_nan(self) -> None:
        """Raise for a NaN."""
        check_no_nan("logits", self.given)

    def double(self) -> LogitsPrediction:
        """Return them in float64."""
        return self._of(self.given.double())

    def whole(self) -> LogitsPrediction:
        """Return logits of all classes: a copy where the mask's are left out."""
        if self.classes.is_filled:
            return self  # ``served_by`` makes the copy
        return self._of(whole(self.given, self.num_classes))

    def served_by(
        self, _implementation: str, reads_classes_first: bool = False
    ) -> LogitsPrediction:
        """Return them contiguous, or so with the classes before the positions.

        They are -inf at the class that kernels do not leave out by themselves.
        """
        if self.classes.is_filled:
            return self._of(self.classes.filled(self.given).contiguous())
        if self.given.is_contiguous():
            return self
        if reads_classes_first and self.given.movedim(-1, 1).is_contiguous():
            return self
        return self._of(self.given.contiguous())

    def masked(self, _mask: Tensor) -> LogitsPrediction:
        """Return them: kernels have no gradient for tokens that do not count."""
        return self

    def logits(self, *parameters: Tensor) -> Tensor:
        """Return the parameter."""
        return parameters[0]

    def pull(self, _parameters: tuple[Tensor, ...], grad: Tensor) -> tuple[Tensor, ...]:
        """Return the gradient."""
        return (grad,)

    def meaning(self, *parameters: Tensor) -> Tensor:
        """Return the parameter."""
        return parameters[0]

    def row(self, token: tuple[int, ...]) -> Tensor:
        """Return the logits of a token."""
        return self.classes.filled(self.given[token])

    def applied(self, operation: Callable[..., Result], items: Items) -> Result:
        """Return an operation's result on all at a time."""
        return operation(self.given, *items)

    def loss(self, of_logits: LossOperation) -> LossOperation:
        """Return the loss of logits."""
        return of_logits

    def differentiable(self, of_logits: Differentiable) -> Differentiable:
        """Return the operation on logits."""
        return of_logits

    def _of(self, given: Tensor) -> LogitsPrediction:
        """Return a prediction of the same kind by another tensor."""
        return LogitsPrediction(given, self.classes)
