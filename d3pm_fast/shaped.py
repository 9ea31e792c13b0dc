"""A prediction of x_0 shaped for sampling: guided, at a temperature, truncated."""

from typing import NamedTuple

import torch
from torch import Tensor

from .reference.logspace import compute_dtype

__all__ = ["Shaped"]


class Shaped(NamedTuple):
    """A denoiser's logits, and how to change what they predict before x_s is drawn.

    In place of logits in ``p_sample``, ``p_posterior`` (which then has no gradient) and as what
    a denoiser returns to ``sample``; not in a loss, which is of the model itself. ``p`` is that
    of the changed prediction s = softmax of the logits after these steps, in this order:

    1. Classifier-free guidance (Ho & Salimans 2022, eq. 6 with ``w = guidance - 1``, on
       log-probabilities): ``unconditional + guidance (logits - unconditional)``. Both are taken
       as given: to normalize either would add one number to the whole row, which changes nothing
       in any later step. A class that either forbids by -inf stays forbidden.
    2. Division by the temperature. Its limit of 0 is the argmax, which ``top_k=1`` takes.
    3. All but the ``top_k`` largest become -inf.
    4. All but the fewest classes, largest first, whose probability after step 3 reaches
       ``top_p`` become -inf: the nucleus (Holtzman et al. 2020). One class at least is left.

    Of equal logits the class of the lower index counts as the larger one. float64 logits are
    changed in float64, all others in float32: for draws of rank-one chains while a row is read,
    which that of a token that stays is not; else for a chunk of items at a time.

    Attributes:
        logits: ``(B, *S, K)``, float32, float64, bfloat16 or float16.
        unconditional: what the denoiser predicts without the condition, of the shape and the
            dtype of the logits; None for no guidance.
        guidance: any finite number: 0 for the unconditional prediction, 1 for the conditional.
        temperature: positive.
        top_k: at least 1; None for all classes.
        top_p: in (0, 1]; None, as 1, for all classes.
    """

    logits: Tensor
    unconditional: Tensor | None = None
    guidance: float = 1.0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None


def arguments_of(shaped: Shaped) -> tuple[Tensor, Tensor | None, float, float, int, float]:
    """Return what an operation takes for shaped logits: neutral numbers for what is not asked."""
    logits, unconditional = shaped.logits, shaped.unconditional
    num_classes = logits.shape[-1]
    range_of = torch.finfo(compute_dtype(logits.dtype))
    return (
        logits.contiguous(),
        None if unconditional is None else unconditional.contiguous(),
        float(shaped.guidance),
        min(max(float(shaped.temperature), range_of.tiny), range_of.max),
        num_classes if shaped.top_k is None else min(int(shaped.top_k), num_classes),
        1.0 if shaped.top_p is None else max(float(shaped.top_p), range_of.tiny),
    )
