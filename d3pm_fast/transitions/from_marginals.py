"""The chain of marginals of your own: the law of redrawn tokens may move with time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from .._arrays import ArrayLike, as_float64, check_law
from .._checks import check_class, check_count
from .._loadable import loadable
from ..chains import MovingTransition, RankOneChain, RankOneTransition

__all__ = ["from_marginals"]

Function = Callable[[Tensor], Tensor]
"""Of times, float64 of any shape, to a number for each."""

_EPS = torch.finfo(torch.float64).eps
_ROUNDING = 1e-13  # of what users calculate
_NAMES = "keep", "base", "mask"


def from_marginals(
    num_classes: int,
    keep: ArrayLike | Function,
    base: ArrayLike | Function,
    mask: ArrayLike | Function | None = None,
    mask_id: int | None = None,
    pi: ArrayLike | None = None,
    data_has_mask: bool = False,
) -> RankOneChain:
    """Return the chain with ``Qbar_t = A I + 1 (W pi + M e_mask)^T``: ``q(x_t | x_0)`` is given.

    A step has ``Q_{s->t} = a I + 1 (w pi + m e_mask)^T``, ``a = A(t) / A(s)``,
    ``w = W(t) - a W(s)`` and ``m = M(t) - a M(s)``. So W / A and M / A may never fall. At time 0
    are the data: where ``A(0) < 1``, the first step leads over a jump.

    The probabilities of ``Qbar_t`` have the digits of the arguments. Differences lose some: w is
    right to 1e-16 of W(t), and so is a rate, ``W' - W A' / A``, to 1e-16 of its two terms;
    the same is true of m. What is not above that is taken for 0. Give base and mask in forms
    that do not cancel, not as ``1 - keep`` where keep is near 1.

    Args:
        num_classes: K, at least 2.
        keep: A, the probability that a token is kept up to t. Either ``(T,)`` with those of
            t = 1..T, or a function of times in [0, 1], float64 of any shape, that returns
            float64 of this shape on the times' device; then time is continuous, and the
            functions are differentiated by PyTorch's autograd.
        base: W, that it is redrawn from pi; as keep.
        mask: M, that it is masked; as keep. None for a chain without a mask.
        mask_id: the mask's class, in [0, K), where there is one.
        pi: ``(K,)``, not negative, summing to 1 within 1e-6; by default uniform.
        data_has_mask: whether x_0 may be the mask; see :func:`~d3pm_fast.transitions.absorbing`.

    Raises:
        ValueError: fewer than 2 classes, a pi that is no law, a mask without its class; at a time
            that is named: probabilities outside [0, 1], or that do not sum to 1 within 1e-6
            (they are divided by their sum), a step or a rate below 0. Functions are looked at
            on a grid of 1001 times.
        IndexError: ``mask_id`` is not a class.
        TypeError: functions beside tables.
    """
    num_classes = check_count("num_classes", num_classes, least=2)
    law = None if pi is None else check_law("pi", pi, num_classes)
    if (mask is None) != (mask_id is None):
        raise ValueError("mask and mask_id are given together, for a chain that has a mask")
    place = -1 if mask_id is None else check_class("mask_id", mask_id, num_classes)
    given = keep, base, mask
    if not any(callable(part) for part in given):
        return _of_tables(num_classes, given, law, place, data_has_mask)
    if not all(part is None or callable(part) for part in given):
        raise TypeError("keep, base and mask must be functions of time, or tables, all of them")
    functions = _Functions(*cast(tuple[Function, Function, Function | None], given))
    functions.check()
    return MovingTransition("from_marginals", num_classes, functions, law, place, data_has_mask)


def _of_tables(
    num_classes: int,
    given: Sequence[Any],
    pi: Tensor | None,
    mask_id: int,
    data_has_mask: bool,
) -> RankOneChain:
    named = zip(_NAMES, given, strict=True)
    tables = [as_float64(name, part) for name, part in named if part is not None]
    shapes = [tuple(table.shape) for table in tables]
    if len(set(shapes)) > 1 or tables[0].ndim != 1 or len(tables[0]) == 0:
        raise ValueError(f"keep, base and mask must have one shape (T,) with T >= 1, got {shapes}")
    times = torch.arange(1, len(tables[0]) + 1, device="cpu")
    _check_laws(_stacked(tables), times)
    after = _normalized(tables)
    before = torch.cat([after.new_tensor([[1.0, 0.0, 0.0]]), after[:-1]])
    _check_steps(before, after, times)
    _, base, mask = _step(before, after)
    betas = (base + mask).clamp(max=1).where(after[:, 0] > 0, 1)
    share: float | Tensor = base / betas.where(betas > 0, 1)
    if not (bool(base.any()) and bool(mask.any())):
        share = float(base.any())
    of_mask = mask_id, data_has_mask
    return RankOneTransition("from_marginals", num_classes, betas, pi, share, *of_mask)


@loadable
@dataclass(frozen=True)
class _Functions:
    """Marginals that are given as functions of time."""

    keep: Function
    base: Function
    mask: Function | None

    def check(self) -> None:
        """Raise unless they are those of a chain, on a grid."""
        times = torch.linspace(0, 1, 1001, dtype=torch.float64, device="cpu")
        for name, part in zip(_NAMES, self._parts(times), strict=False):
            if part.shape != times.shape or part.dtype != torch.float64:
                got = f"{part.dtype} {tuple(part.shape)}"
                raise ValueError(f"{name} must return float64 numbers of the shape of t, got {got}")
        _check_laws(_stacked(self._parts(times)), times)
        laws = self._laws(times)
        laws[0] = laws.new_tensor([1.0, 0.0, 0.0])
        _check_steps(laws[:-1], laws[1:], times[1:])
        inner = times[1:-1]
        for name, (rate, terms) in zip(_NAMES[1:], self._rate_terms(inner), strict=True):
            low = rate < -_ROUNDING / laws[1:-1, 0] * terms
            _refuse(low, f"the rate of {name}, W' - W A' / A, must be at least 0", rate, inner)

    def product(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``A, W, M``."""
        keep, base, mask = self._laws(t).unbind(-1)
        return keep.where(t > 0, 1), base.where(t > 0, 0), mask.where(t > 0, 0)

    def step(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``a, w, m``."""
        return _step(*(torch.stack(self.product(time), dim=-1) for time in (s, t)))

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``W' + r W`` and ``M' + r M``."""
        base, mask = (rate.where(rate > 8 * _EPS * terms, 0) for rate, terms in self._rate_terms(t))
        return base, mask

    def _rate_terms(self, t: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return each rate, and the size of its terms; 0 where no token is left as it was."""
        laws, pull = torch.func.vjp(self._laws, t)  # type: ignore[misc]
        keep, *others = laws.unbind(-1)
        each = torch.eye(3, dtype=t.dtype, device=t.device)
        fall, *changes = (pull(one.expand(laws.shape))[0] for one in each)
        ratio = (-fall / keep).where(keep > 0, 0)
        return [
            ((change + ratio * other).where(keep > 0, 0), change.abs() + ratio.abs() * other)
            for other, change in zip(others, changes, strict=True)
        ]

    def _laws(self, t: Tensor) -> Tensor:
        return _normalized(self._parts(t))

    def _parts(self, t: Tensor) -> list[Tensor]:
        return [part(t) for part in (self.keep, self.base, self.mask) if part is not None]


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    """Return A, W and M, ``(..., 3)``; without a mask M is 0."""
    return torch.stack([*parts, torch.zeros_like(parts[0])][:3], dim=-1)


def _normalized(parts: Sequence[Tensor]) -> Tensor:
    stacked = _stacked(parts).clamp(min=0)
    return stacked / stacked.sum(-1, keepdim=True)


def _step(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``a, w, m`` of marginals ``(..., 3)``, without what is rounding."""
    keep, moved = _differences(before, after)
    base, mask = moved.where(moved > 4 * _EPS * after[..., 1:], 0).unbind(-1)
    return keep, base, mask


def _differences(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    kept = before[..., :1]
    keep = (after[..., :1] / kept).where(kept > 0, 0)
    return keep.squeeze(-1), after[..., 1:] - keep * before[..., 1:]


def _check_laws(laws: Tensor, times: Tensor) -> None:
    for name, part in zip(_NAMES, laws.unbind(-1), strict=True):
        inside = (part >= -_ROUNDING) & (part <= 1 + _ROUNDING)
        _refuse(~inside, f"{name} must lie in [0, 1]", part, times)
    total = laws.sum(-1)
    _refuse((total - 1).abs() > 1e-6, "keep + base + mask must be 1 within 1e-6", total, times)


def _check_steps(before: Tensor, after: Tensor, times: Tensor) -> None:
    rise = after[:, 0] - before[:, 0]
    _refuse(rise > _ROUNDING, "keep must never grow", after[:, 0], times)
    _, moved = _differences(before, after)
    for name, part in zip(_NAMES[1:], moved.unbind(-1), strict=True):
        low = part < -_ROUNDING / before[:, 0]
        _refuse(
            low, f"the step of {name}, W(t) - W(s) A(t) / A(s), must be at least 0", part, times
        )
    _refuse(after[-1:, 0] == 1, "keep must fall below 1", after[-1:, 0], times[-1:])


def _refuse(bad: Tensor, rule: str, values: Tensor, times: Tensor) -> None:
    if bool(bad.any()):
        at = int(bad.nonzero()[0])
        raise ValueError(f"{rule}, got {values[at]:.6g} at t = {times[at]:.6g}")
