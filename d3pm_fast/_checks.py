"""What the public functions check of their arguments, and the sentences they say."""

import math
import numbers
import operator
from collections.abc import Sequence
from typing import Any, Protocol, SupportsIndex, TypeVar

import torch
from torch import Tensor


class HasDevice(Protocol):
    """A tensor, or a transition."""

    @property
    def device(self) -> torch.device:
        """Where its numbers are."""


Choice = TypeVar("Choice", bound=str | int)

INTEGER_DTYPES = frozenset(
    {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
    | {torch.uint16, torch.uint32, torch.uint64}
)
FLOAT_DTYPES = frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16})


def check_integer(name: str, value: SupportsIndex) -> int:
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


def check_count(name: str, value: SupportsIndex, least: int = 1) -> int:
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


def check_t_min(value: float, includes_zero: bool = False) -> float:
    """Return ``value`` if it lies in (0, 1), or in [0, 1)."""
    if not (0 < value < 1 or (includes_zero and value == 0)):
        interval = "[0, 1)" if includes_zero else "(0, 1)"
        raise ValueError(f"t_min must lie in {interval}, got {value}")
    return value


def check_class(name: str, value: int, num_classes: int) -> int:
    """Return ``value`` as an int if it is a class, 0..K-1."""
    index = check_count(name, value, least=0)
    if index >= num_classes:
        raise IndexError(f"{name} must lie in [0, {num_classes}), got {index}")
    return index


def check_choice(name: str, value: str | int, choices: tuple[Choice, ...]) -> Choice:
    """Return ``value`` if it is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def check_plain(name: str, value: Tensor) -> None:
    """Raise unless ``value`` is a tensor, and no DTensor."""
    if not isinstance(value, Tensor):
        raise not_a_tensor(name, value)
    if type(value) is not Tensor and hasattr(value, "device_mesh"):
        raise TypeError(
            f"{name} must be a plain tensor, of the items of this rank, got a DTensor: take "
            f"{name}.to_local()"
        )


def check_tokens(
    name: str, value: Tensor, num_classes: int = 0, shape: tuple[int, ...] | None = None
) -> None:
    """Raise unless ``value`` is an integer tensor with a batch axis.

    One-hot vectors of K classes are told by the shape that is expected; where none is, they are
    only what numbers with K in the last axis may be.
    """
    check_plain(name, value)
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


def check_times(name: str, t: Tensor, shape: torch.Size, are_integers: bool = True) -> None:
    """Raise unless ``t`` is a tensor of integers, or of floats, of shape (B,) or (B, *S)."""
    check_plain(name, t)
    if t.dtype not in (INTEGER_DTYPES if are_integers else FLOAT_DTYPES):
        kind = "an integer" if are_integers else "a float"
        raise TypeError(f"{name} must be {kind} tensor, got {t.dtype}")
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


def check_logits(
    name: str, logits: Tensor, shape: torch.Size, classes: tuple[int, int, int, bool]
) -> None:
    """Raise unless ``logits`` is a float tensor of shape (*shape, K).

    Of K classes the last one may be left out where it is the second of the numbers, the class that
    is forbidden. The third one is the dimension that the caller had the classes in.
    """
    check_float(name, logits)
    num_classes, forbidden, class_dim, _ = classes
    if forbidden == num_classes - 1 and logits.shape == (*shape, forbidden):
        return
    first, last = (*shape[:1], num_classes, *shape[1:]), (*shape, num_classes)
    if logits.shape == last:
        return
    expected, other = (last, first) if class_dim == -1 else (first, last)
    got = tuple(logits.shape if logits.ndim < 2 else logits.movedim(-1, class_dim).shape)
    hint = f"; for classes in dimension {-class_dim} say class_dim={-class_dim}"
    raise ValueError(f"{name} must have shape {expected}, got {got}{hint if got == other else ''}")


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


def check_token_weights(weights: Tensor, shape: torch.Size) -> None:
    """Raise unless the weights are floats (B,) or (B, *S) without a graph."""
    check_float("weights", weights)
    if weights.shape not in (shape, shape[:1]):
        raise ValueError(
            f"weights must have shape {tuple(shape[:1])} or {tuple(shape)}, "
            f"got {tuple(weights.shape)}"
        )
    if weights.requires_grad:
        raise ValueError(
            "weights must not require a gradient: multiply the losses of "
            'reduction="none" by weights that are learned'
        )


def check_no_nan(name: str, value: Tensor | tuple[Any, ...]) -> None:
    """Raise if a tensor, or one in a tuple, has a NaN; reads the values."""
    for part in value if isinstance(value, tuple) else (value,):
        if isinstance(part, Tensor) and bool(part.isnan().any()):
            where = tuple(int(i) for i in part.isnan().nonzero()[0])
            raise ValueError(f"{name} must not be NaN, got one at index {where}")


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


def check_interval(name: str, value: Tensor, includes_zero: bool) -> None:
    """Raise IndexError unless every entry lies in (0, 1], or in [0, 1]; reads the values."""
    bad = ~((value >= 0) & (value <= 1)) if includes_zero else ~((value > 0) & (value <= 1))
    if bool(bad.any()):
        interval = "[0, 1]" if includes_zero else "(0, 1]"
        raise IndexError(f"{name} must lie in {interval}, got {value[bad][0].item()}")


def check_data(x0: Tensor, forbidden: int) -> None:
    """Raise if data hold the class that they never do, -1 for none; reads the values."""
    if forbidden >= 0 and bool((x0 == forbidden).any()):
        where = tuple(int(i) for i in (x0 == forbidden).nonzero()[0])
        raise ValueError(
            f"x0 must not hold the mask, class {forbidden}, got one at index {where}: leave such "
            "tokens out by mask=, or make the chain with data_has_mask=True if its family has that"
        )


def not_a_tensor(name: str, value: object) -> TypeError:
    """Return the error to raise for ``value``."""
    return TypeError(f"{name} must be a tensor, got {type(value).__name__}")
