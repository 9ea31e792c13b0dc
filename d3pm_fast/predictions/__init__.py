"""The kinds of predictions of x_0, one a file, and how what a denoiser gives is taken for one."""

from typing import Any

from torch import Tensor

from .._checks import check_choice, not_a_tensor
from ..chains import Transition
from ..choices import CLASS_DIMS, ClassDim
from .linear import Linear, LinearPrediction, as_linear
from .logistic import Logistic, LogisticPrediction
from .logits import LogitsPrediction
from .prediction import Classes, Prediction
from .score import Score, ScorePrediction
from .shaped import Shaped, ShapedPrediction
from .sharded import Sharded, distributed_prediction, is_distributed, sharded_prediction
from .sharded_linear import sharded_linear

__all__ = [
    "Classes",
    "Linear",
    "Logistic",
    "Predicted",
    "Prediction",
    "Score",
    "Shaped",
    "Sharded",
    "as_linear",
    "as_prediction",
]

Predicted = Tensor | tuple[Any, ...]
"""What a denoiser may give: logits, or a kind of prediction in their place."""

_KINDS: dict[type, Any] = {
    Linear: LinearPrediction,
    Score: ScorePrediction,
    Shaped: ShapedPrediction,
    tuple: LogisticPrediction,
}


def as_prediction(given: Predicted, transition: Transition, class_dim: ClassDim = -1) -> Prediction:
    """Return what a denoiser gives as a prediction of the classes of a chain, unchecked."""
    dim = check_choice("class_dim", class_dim, CLASS_DIMS)
    forbidden = transition.forbidden
    is_filled = forbidden >= 0 and not transition.steps_forbid
    classes = Classes(transition.num_classes, forbidden, dim, is_filled)
    if dim != -1:
        given = _classes_last(given, dim)
    if isinstance(given, Tensor):
        if is_distributed(given):
            return distributed_prediction(given, classes, transition.redraws)
        return LogitsPrediction(given, classes)
    if isinstance(given, Linear) and is_distributed(given.weight):
        return sharded_linear(given, classes, transition.redraws)
    if isinstance(given, Sharded):
        return sharded_prediction(given, classes, transition.redraws)
    for kind, make in _KINDS.items():
        if isinstance(given, kind):
            return make(given, classes)  # type: ignore[no-any-return]
    raise not_a_tensor("logits", given)


def _classes_last(given: Predicted, dim: ClassDim) -> Predicted:
    """Return logits with the classes moved to the end; parameters have no axis of classes."""
    if isinstance(given, Tensor):
        return given.movedim(dim, -1) if given.ndim > 1 else given
    if isinstance(given, Score | Shaped | Sharded):
        return type(given)(*(_classes_last(x, dim) if isinstance(x, Tensor) else x for x in given))  # type: ignore[arg-type]
    return given
