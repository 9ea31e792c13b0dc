"""The kinds of predictions of x_0, one a file, and how what a denoiser gives is taken for one."""

from typing import Any

from torch import Tensor

from .._checks import not_a_tensor
from ..chains import Transition
from .logistic import Logistic, LogisticPrediction
from .logits import LogitsPrediction
from .prediction import Classes, Prediction
from .shaped import Shaped, ShapedPrediction

__all__ = ["Classes", "Logistic", "Predicted", "Prediction", "Shaped", "as_prediction"]

Predicted = Tensor | tuple[Any, ...]
"""What a denoiser may give: logits, or a kind of prediction in their place."""

_KINDS: dict[type, Any] = {Shaped: ShapedPrediction, tuple: LogisticPrediction}


def as_prediction(given: Predicted, transition: Transition) -> Prediction:
    """Return what a denoiser gives as a prediction of the classes of a chain, unchecked."""
    classes = Classes(transition.num_classes, transition.forbidden)
    if isinstance(given, Tensor):
        return LogitsPrediction(given, classes)
    for kind, make in _KINDS.items():
        if isinstance(given, kind):
            return make(given, classes)  # type: ignore[no-any-return]
    raise not_a_tensor("logits", given)
