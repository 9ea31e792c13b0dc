"""What chains and schedules are made of: numbers that are checked, as float64 copies on the CPU."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

ArrayLike = Tensor | np.ndarray | Sequence[float]


def as_float64(name: str, values: ArrayLike) -> Tensor:
    """Return a float64 CPU copy; Python's floats do not pass through PyTorch's default dtype."""
    if not isinstance(values, Tensor):
        try:
            values = torch.tensor(np.asarray(values, dtype=np.float64), device="cpu")
        except (TypeError, ValueError):
            got = type(values).__name__
            if isinstance(values, str):
                names_a_schedule = name == "betas" and values.isidentifier()
                got = f"{values!r}" + f": take schedules.{values}(T)" * names_a_schedule
            raise TypeError(f"{name} must be a tensor or an array of numbers, got {got}") from None
    if values.is_meta:
        raise ValueError(f"{name} must hold numbers, got a tensor on the meta device")
    return values.detach().to("cpu", torch.float64, copy=True)


def check_probabilities(name: str, values: ArrayLike) -> Tensor:
    """Return ``values`` as a float64 CPU copy of shape (T,), every entry in [0, 1]."""
    array = as_float64(name, values)
    if array.ndim != 1 or array.numel() == 0:
        raise ValueError(f"{name} must have shape (T,) with T >= 1, got {tuple(array.shape)}")
    bad = ~((array >= 0) & (array <= 1))
    if bool(bad.any()):
        t = int(bad.nonzero()[0])
        raise ValueError(f"{name} must lie in [0, 1], got {array[t]:.6g} at t = {t + 1}")
    return array


def check_law(name: str, values: ArrayLike, num_classes: int) -> Tensor:
    """Return a distribution over K classes as a float64 CPU copy, divided by its sum."""
    law = as_float64(name, values)
    if law.shape != (num_classes,):
        raise ValueError(f"{name} must have shape ({num_classes},), got {tuple(law.shape)}")
    if not bool((law >= 0).all() & law.isfinite().all()):
        raise ValueError(
            f"{name} must be finite and not negative, its least entry is {law.min():g}"
        )
    if abs(float(law.sum()) - 1) > 1e-6:
        raise ValueError(f"{name} must sum to 1 within 1e-6, its sum is {float(law.sum()):.9g}")
    return law / law.sum()


def check_square(name: str, values: ArrayLike) -> Tensor:
    """Return a finite matrix as a float64 CPU copy of shape (K, K), K at least 2."""
    matrix = as_float64(name, values)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) < 2:
        raise ValueError(f"{name} must have shape (K, K) with K >= 2, got {tuple(matrix.shape)}")
    check_finite(name, matrix)
    return matrix


def check_stochastic(name: str, matrices: Tensor) -> Tensor:
    """Return float64 matrices (T, K, K) of probabilities, each row divided by its sum."""
    check_finite(name, matrices)
    if bool((matrices < 0).any()):
        t, i, j = (int(index) for index in (matrices < 0).nonzero()[0])
        raise ValueError(
            f"{name} must not be negative, got {matrices[t, i, j]:.6g} for ({i}, {j}) "
            f"at t = {t + 1}"
        )
    sums = matrices.sum(2)
    off = (sums - 1).abs() > 1e-6
    if bool(off.any()):
        t, i = (int(index) for index in off.nonzero()[0])
        raise ValueError(
            f"rows of {name} must sum to 1 within 1e-6, row {i} at t = {t + 1} sums to "
            f"{sums[t, i]:.9g}"
        )
    return matrices / sums.unsqueeze(2)


def check_finite(name: str, values: Tensor) -> None:
    """Raise unless every entry is finite; reads the values."""
    bad = ~values.isfinite()
    if bool(bad.any()):
        where = tuple(int(i) for i in bad.nonzero()[0])
        raise ValueError(f"{name} must be finite, got {float(values[where])} at {where}")
