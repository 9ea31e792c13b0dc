"""Predicteds that are kept while the tokens that they were made from do not change."""

from collections.abc import Callable

import torch
from torch import Tensor

from .predictions import Predicted
from .reductions import sum_positions


class Reuse:
    """A denoiser that does not look at t, called again only for items whose tokens changed."""

    def __init__(self, denoiser: Callable[[Tensor, Tensor], Predicted]) -> None:
        self._denoiser = denoiser
        self._last: tuple[Tensor, Predicted] | None = None

    def __call__(self, x_t: Tensor, t: Tensor) -> Predicted:
        """Return the prediction of x_0, ``(B, *S, K)`` or a pair of parameters."""
        if self._last is None:
            prediction = self._denoiser(x_t, t)
            # A copy: the denoiser may write into the same tensors again.
            items = torch.arange(len(x_t), device=x_t.device)
            prediction = _replaced(prediction, items, prediction)
        else:
            tokens, prediction = self._last
            changed = (sum_positions(x_t != tokens) > 0).nonzero().squeeze(1)
            if len(changed):
                part = self._denoiser(x_t[changed], t[changed])
                prediction = _replaced(prediction, changed, part)
        self._last = x_t, prediction
        return prediction


def _replaced(prediction: Predicted, items: Tensor, part: Predicted) -> Predicted:
    """Return the prediction with that of some items replaced; it may be the denoiser's own."""
    if isinstance(prediction, Tensor):
        assert isinstance(part, Tensor)
        return prediction.index_copy(0, items, part)
    make = getattr(type(prediction), "_make", tuple)
    return make(
        _replaced(old, items, new) if isinstance(old, (Tensor, tuple)) else new
        for old, new in zip(prediction, part, strict=True)
    )
