"""A prediction of x_0 shaped for sampling: guided, at a temperature, truncated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import derivatives, reference
from .._checks import (
    check_count,
    check_float,
    check_logits,
    check_no_nan,
    check_number,
    check_same_device,
    check_shape,
)
from ..chains import Transition
from ..derivatives import Items
from ..ops import shaped_logits, shaped_p_sample
from ..records import Shaping, TokenRandom
from ..reference.logspace import compute_dtype, whole
from .prediction import Classes, FindKernel, Prediction

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
    5. All whose probability is below ``min_p`` times the largest become -inf (Nguyen et al. 2024,
       arXiv 2407.01082).

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
        min_p: in [0, 1]; None, as 0, for all classes.
    """

    logits: Tensor
    unconditional: Tensor | None = None
    guidance: float = 1.0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None


class ShapedPrediction(Prediction):
    """Logits that are shaped before anything is made of them; nothing is differentiated."""

    def __init__(self, given: Shaped, classes: Classes, implementation: str = "reference") -> None:
        self.given, self.classes = given, classes
        self._implementation = implementation

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of the tokens."""
        logits = self.given.logits
        return tuple(logits.shape[:-1]) if isinstance(logits, Tensor) else None

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """The logits, and the unconditional ones where there are any."""
        return tuple(x for x in self.given[:2] if x is not None)

    def check(self, shape: torch.Size) -> None:
        """Raise unless the logits are of shape ``(*shape, K)`` and the rest is as documented."""
        _check_shaped(*self.given)
        check_logits("logits", self.given.logits, shape, self.classes)

    def check_loss(self, transition: Transition, ce_weight: float | Tensor) -> None:
        """Raise: a loss is of the model itself."""
        raise TypeError("logits must be those of the model in a loss, got Shaped ones")

    def check_gradient(self) -> None:
        """Raise where a gradient is asked for."""
        if derivatives.are_asked(*self.parameters) or (
            torch.is_grad_enabled() and any(x.requires_grad for x in self.parameters)
        ):
            raise ValueError(
                "p_posterior of Shaped logits has no gradient: give detached ones, "
                "or call it under torch.no_grad()"
            )

    def check_no_nan(self) -> None:
        """Raise for a NaN."""
        check_no_nan("logits", self.given)

    def double(self) -> ShapedPrediction:
        """Return it in float64."""
        logits, other = self.given[:2]
        other = None if other is None else other.double()
        return ShapedPrediction(Shaped(logits.double(), other, *self.given[2:]), self.classes)

    def whole(self) -> ShapedPrediction:
        """Return logits of all classes: copies where the mask's are left out."""
        logits, other = self.given[:2]
        other = None if other is None else whole(other, self.num_classes)
        made = Shaped(whole(logits, self.num_classes), other, *self.given[2:])
        return ShapedPrediction(made, self.classes)

    def served_by(
        self, implementation: str, _reads_classes_first: bool = False
    ) -> ShapedPrediction:
        """Return it, to be shaped by an implementation, or by plain PyTorch."""
        served = implementation if shaped_logits.is_served(implementation) else "reference"
        return ShapedPrediction(self.given, self.classes, served)

    def masked(self, _mask: Tensor) -> ShapedPrediction:
        """Return it: it has no gradient."""
        return self

    def logits(self, *parameters: Tensor) -> Tensor:
        """Return the shaped logits of some items."""
        first, *other = (x.contiguous() for x in parameters)
        shaping = Shaping(other[0] if other else None, *self._shaping[1:])
        return shaped_logits.kernel(self._implementation)(first, shaping)  # type: ignore[no-any-return]

    def pull(self, parameters: tuple[Tensor, ...], grad: Tensor) -> tuple[Tensor, ...]:
        """Shaped logits have no gradient."""
        raise NotImplementedError

    def meaning(self, *parameters: Tensor) -> Tensor:
        """Return the shaped logits by plain PyTorch."""
        return reference.shaped_logits(parameters[0], self._shaping)

    def row(self, token: tuple[int, ...]) -> Tensor:
        """Return the shaped logits of a token."""
        return reference.shaped_row(token, self.given.logits, self._shaping)

    def sampled(self, find: FindKernel, call: Callable[..., Tensor], items: Items) -> Tensor:
        """Return draws: where an implementation can, rows are shaped as they are read."""
        fused = find(shaped_p_sample)
        if fused is None:
            return super().sampled(find, call, items)
        return call(fused, self.given.logits.contiguous(), *items, self._shaping)

    def predicted(
        self, kernel: Any, known: Tensor, random: TokenRandom, samples: bool
    ) -> tuple[Tensor, Tensor]:
        """Return what an implementation's ``predict`` says of tokens; rows are shaped as read."""
        logits = self.given.logits.contiguous()
        return kernel(logits, known, random, samples, self._shaping)  # type: ignore[no-any-return]

    @property
    def _shaping(self) -> Shaping:
        """Return what is asked for, and neutral numbers for what is not."""
        _, unconditional, guidance, temperature, top_k, top_p, min_p = self.given
        range_of = torch.finfo(compute_dtype(self.dtype))
        return Shaping(
            None if unconditional is None else unconditional.contiguous(),
            float(guidance),
            min(max(float(temperature), range_of.tiny), range_of.max),
            self.num_classes if top_k is None else min(int(top_k), self.num_classes),
            1.0 if top_p is None else max(float(top_p), range_of.tiny),
            float(min_p or 0),
            self.classes.forbidden,
        )


def _check_shaped(
    logits: Tensor,
    unconditional: Tensor | None,
    guidance: float,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
) -> None:
    """Raise unless the fields of Shaped are what it documents, for logits of any shape."""
    check_float("logits", logits)
    if unconditional is not None:
        check_shape("unconditional", unconditional, tuple(logits.shape))
        if unconditional.dtype != logits.dtype:
            raise TypeError(
                f"unconditional must be {logits.dtype} as logits is, got {unconditional.dtype}"
            )
        check_same_device(logits=logits, unconditional=unconditional)
    if check_number("guidance", guidance) != 1 and unconditional is None:
        raise ValueError(f"guidance {guidance} needs unconditional logits, got None")
    if check_number("temperature", temperature) <= 0:
        raise ValueError(
            f"temperature must be positive, got {temperature}; for its limit, the argmax, "
            "take top_k=1"
        )
    if top_k is not None:
        check_count("top_k", top_k)
    if top_p is not None and not 0 < check_number("top_p", top_p) <= 1:
        raise ValueError(f"top_p must lie in (0, 1], got {top_p}")
    if min_p is not None and not 0 <= check_number("min_p", min_p) <= 1:
        raise ValueError(f"min_p must lie in [0, 1], got {min_p}")
