"""What the public functions check of their arguments, and the sentences they say."""

import math
import numbers
import operator
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor


class HasDevice(Protocol):
    """A tensor, or a transition."""

    @property
    def device(self) -> torch.device:
        """Where its numbers are."""


Choice = TypeVar("Choice", bound=str)
ArrayLike = Tensor | np.ndarray | Sequence[float]

INTEGER_DTYPES = frozenset(
    {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
    | {torch.uint16, torch.uint32, torch.uint64}
)
FLOAT_DTYPES = frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16})


def check_integer(name: str, value: int) -> int:
    """Return ``value`` as an int."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}") from None


def check_number(name: str, value: float) -> float:
    """Return ``value`` if it is a finite number."""
    if not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not -math.inf < value < math.inf:
        raise ValueError(f"{name} must be finite, got {value}")
    return float(value)


def check_weight(name: str, value: float | Tensor) -> float | Tensor:
    """Return ``value`` if it is a finite number, or a tensor that holds one and is not read."""
    if not isinstance(value, Tensor):
        return check_number(name, value)
    check_float(name, value)
    if value.ndim > 0:
        raise ValueError(
            f"{name} must be a number or a tensor of shape (), got {tuple(value.shape)}"
        )
    return value


def check_count(name: str, value: int, least: int = 1) -> int:
    """Return ``value`` as an int of at least ``least``."""
    count = check_integer(name, value)
    if count < least:
        raise ValueError(f"{name} must be at least {least}, got {count}")
    return count


def check_probability(name: str, value: float) -> float:
    """Return ``value`` if it lies in [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {value}")
    return value


def as_float64(name: str, values: ArrayLike) -> Tensor:
    """Return a float64 CPU copy; Python's floats do not pass through PyTorch's default dtype."""
    if not isinstance(values, Tensor):
        try:
            values = torch.tensor(np.asarray(values, dtype=np.float64), device="cpu")
        except (TypeError, ValueError):
            got = type(values).__name__
            if isinstance(values, str):
                from . import schedules  # imports this module

                is_schedule = values in schedules.__all__
                got = f"{values!r}" + f": take schedules.{values}(T)" * is_schedule
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


def check_class(name: str, value: int, num_classes: int) -> int:
    """Return ``value`` as an int if it is a class, 0..K-1."""
    index = check_count(name, value, least=0)
    if index >= num_classes:
        raise IndexError(f"{name} must lie in [0, {num_classes}), got {index}")
    return index


def check_choice(name: str, value: str, choices: tuple[Choice, ...]) -> Choice:
    """Return ``value`` if it is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def check_tokens(
    name: str, value: Tensor, num_classes: int = 0, shape: tuple[int, ...] | None = None
) -> None:
    """Raise unless ``value`` is an integer tensor with a batch axis.

    One-hot vectors of K classes are told by the shape that is expected; where none is, they are
    only what numbers with K in the last axis may be.
    """
    if not isinstance(value, Tensor):
        raise not_a_tensor(name, value)
    may_be_one_hot = value.ndim > 1 and value.shape[-1] == num_classes
    if may_be_one_hot and value.shape[:-1] == shape:
        raise ValueError(
            f"{name} must hold class numbers (B, *S), got one-hot vectors {tuple(value.shape)}: "
            f"take {name}.argmax(-1)"
        )
    if value.dtype not in INTEGER_DTYPES:
        remedy = f"; of one-hot vectors take {name}.argmax(-1)" if may_be_one_hot else ""
        raise TypeError(f"{name} must be an integer tensor, got {value.dtype}{remedy}")
    if value.ndim == 0:
        raise ValueError(f"{name} must have shape (B, *S), got a scalar")


def check_times(name: str, t: Tensor, shape: torch.Size) -> None:
    """Raise unless ``t`` is an integer tensor of shape (B,) or (B, *S)."""
    if not isinstance(t, Tensor):
        raise not_a_tensor(name, t)
    if t.dtype not in INTEGER_DTYPES:
        raise TypeError(f"{name} must be an integer tensor, got {t.dtype}")
    if t.shape not in (shape, shape[:1]):
        raise ValueError(
            f"{name} must have shape {tuple(shape[:1])} or {tuple(shape)}, got {tuple(t.shape)}"
        )


def check_float(name: str, value: Tensor) -> None:
    """Raise unless ``value`` is a float tensor."""
    if not isinstance(value, Tensor):
        raise not_a_tensor(name, value)
    if value.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name} must be float32, float64, bfloat16 or float16, got {value.dtype}")


def check_logits(name: str, logits: Tensor, shape: torch.Size, num_classes: int) -> None:
    """Raise unless ``logits`` is a float tensor of shape (*shape, K)."""
    check_float(name, logits)
    expected = *shape, num_classes
    if logits.shape != expected and logits.shape == (*shape[:1], num_classes, *shape[1:]):
        raise ValueError(
            f"{name} must have shape {expected}, got {tuple(logits.shape)}: the classes come "
            f"last, take {name}.movedim(1, -1)"
        )
    check_shape(name, logits, expected)


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


def check_shaped(
    logits: Tensor,
    unconditional: Tensor | None,
    guidance: float,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
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


def check_shape(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    """Raise unless ``value`` has this shape."""
    if not isinstance(value, Tensor):
        raise not_a_tensor(name, value)
    if value.shape != shape:
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(value.shape)}")


def check_mask(mask: Tensor, shape: torch.Size) -> None:
    """Raise unless ``mask`` is a bool tensor of this shape."""
    check_shape("mask", mask, shape)
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be a bool tensor (True where a token counts), got {mask.dtype}")


def check_no_nan(name: str, value: Tensor | tuple[Any, ...]) -> None:
    """Raise if a tensor, or one in a tuple, has a NaN; reads the values."""
    for part in value if isinstance(value, tuple) else (value,):
        if isinstance(part, Tensor) and bool(part.isnan().any()):
            where = tuple(int(i) for i in part.isnan().nonzero()[0])
            raise ValueError(f"{name} must not be NaN, got one at index {where}")


class NoLaw(ValueError):
    """A draw from what is no law.

    Attributes:
        found: what stands in its place.
        index: the token's.
    """

    def __init__(self, found: str, index: tuple[int, ...]) -> None:
        super().__init__(f"{found} at index {index}")
        self.found, self.index = found, index

    def behind(self, items: int) -> "NoLaw":
        """Return the error of a batch in which so many items come before those of this one."""
        first, *position = self.index
        return NoLaw(self.found, (first + items, *position))


def check_drawn(drawn: Tensor, x_t: Tensor, row_of: Callable[[tuple[int, ...]], Tensor]) -> None:
    """Raise NoLaw where a draw ``(B, *S)`` is negative; reads the values.

    ``row_of`` returns the logits of a token, ``(K,)``, as they were drawn from.
    """
    bad = drawn < 0
    if not bool(bad.any()):
        return
    token = tuple(int(i) for i in bad.nonzero()[0])
    row = row_of(token)
    if not bool((row < torch.inf).all()):
        found = f"have a softmax, got {'NaN' if bool(row.isnan().any()) else 'inf'}"
    elif bool((row == -torch.inf).all()):
        found = "have a softmax, got nothing but -inf"
    else:
        found = f"allow a class that leads to x_t = {int(x_t[token])}, got -inf for all that do,"
    raise NoLaw(f"logits must {found}", token)


def check_sizes(name: str, value: Sequence[int]) -> None:
    """Raise unless ``value`` is the shape of a tensor with a batch axis."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise TypeError(f"{name} must be a tuple of integers (B, *S), got {type(value).__name__}")
    if len(value) == 0:
        raise ValueError(f"{name} must be (B, *S), got ()")
    for axis, size in enumerate(value):
        check_count(f"{name}[{axis}]", size, least=0)


def check_same_device(**tensors: HasDevice | None) -> None:
    """Raise unless all tensors are on one device."""
    first = reference = None
    for name, value in tensors.items():
        if value is None:
            continue
        if reference is None:
            first, reference = name, value.device
        elif value.device != reference:
            raise ValueError(
                f"{name} must be on the device of {first}, {reference}, got {value.device}"
            )


def check_range(name: str, value: Tensor, low: int, high: int) -> None:
    """Raise IndexError unless every entry lies in [low, high); reads the values."""
    wide = value.long()
    bad = (wide < low) | (wide >= high)
    if bool(bad.any()):
        where = tuple(int(i) for i in bad.nonzero()[0])
        found = int(wide[where])
        is_data = name == "t" and found == 0
        hint = "; the data are t = 0, times of noise are 1..T" if is_data else ""
        raise IndexError(f"{name} must lie in [{low}, {high}), got {found} at index {where}{hint}")


def not_a_tensor(name: str, value: object) -> TypeError:
    """Return the error to raise for ``value``."""
    return TypeError(f"{name} must be a tensor, got {type(value).__name__}")
