"""Draws from what is no law: the error, and where it is found."""

from collections.abc import Callable

import torch
from torch import Tensor


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


def check_has_law(drawn: Tensor) -> None:
    """Raise NoLaw where a draw ``(B, *S)`` by scores is negative; reads the values."""
    bad = drawn < 0
    if bool(bad.any()):
        token = tuple(int(i) for i in bad.nonzero()[0])
        raise NoLaw("log_scores must give x_s a law, got NaN, inf, or no weight above 0", token)


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
