"""Pairs ``(x_0, x_t)`` that a chain cannot make: they have no posterior, and their loss is NaN."""

import math
import warnings
from weakref import WeakSet

import torch
from torch import Tensor

from ..chains import Transition

__all__ = ["check_possible", "warn_where_nan"]

_warned: WeakSet[Transition] = WeakSet()


def check_possible(
    transition: Transition, x0: Tensor, mask: Tensor | None, x_t: Tensor, t: Tensor
) -> None:
    """Raise ValueError for the first such pair that counts."""
    found = _first(transition, x0, mask, x_t, t)
    if found is not None:
        raise ValueError(found)


def warn_where_nan(
    loss: Tensor,
    transition: Transition,
    x0: Tensor,
    mask: Tensor | None,
    x_t: Tensor,
    t: Tensor,
) -> None:
    """Warn, once for a chain, where a loss on the CPU is NaN for such a pair."""
    if type(loss) is not Tensor or loss.device.type != "cpu" or transition in _warned:
        return
    has_nan = math.isnan(loss.item()) if loss.ndim == 0 else bool(loss.isnan().any())
    found = _first(transition, x0, mask, x_t, t) if has_nan else None
    if found is not None:
        _warned.add(transition)
        warnings.warn(
            f"the loss is NaN: {found}; draw x_t by q_sample for the same t, or leave such tokens "
            "out by mask= (D3PM_FAST_CHECK=1 raises an error here)",
            stacklevel=4,
        )


def _first(
    transition: Transition, x0: Tensor, mask: Tensor | None, x_t: Tensor, t: Tensor
) -> str | None:
    x0, x_t = x0.long(), x_t.long()
    t = t.view(*t.shape, *(1,) * (x0.ndim - t.ndim)).expand(x0.shape)
    counts = (t > 0) & (t <= transition.last_time)
    for tokens in (x0, x_t):
        counts &= (tokens >= 0) & (tokens < transition.num_classes)
    if mask is not None:
        counts &= mask
    x0, x_t, t = x0[counts], x_t[counts], t[counts]
    bad = transition.log_reach(x0, x_t, t) == -torch.inf
    if not bool(bad.any()):
        return None
    n = int(bad.nonzero()[0])
    token = int(counts.flatten().nonzero()[n])
    return (
        f"x_t = {int(x_t[n])} cannot come from x0 = {int(x0[n])} at t = {t[n].item()} "
        f"(token {token}): the chain gives it probability 0"
    )
