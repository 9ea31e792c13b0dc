"""The matrices of a chain's steps in one place, as kernels look them up that know only a number.

A chain whose matrices fit its ``memory_budget`` has those of all steps ``t - 1 -> t`` on the
device, so that nothing has to know the times before a kernel reads them. For any other chain, and
for longer steps, the times come to the host, and the matrices of those that occur are put together.
"""

from collections.abc import Callable
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from .factored import is_mixed
from .logs import LEAST
from .matrix import MatrixTransition
from .structures import MatrixStep

__all__ = ["StepTables", "step_tables"]


class StepTables(NamedTuple):
    """The matrices of n steps ``s -> t``, float64 but for the parts.

    What is below float64's range is there as its logarithm, see ``kernels/dense/entries.py``.

    Attributes:
        q: ``(n, K, K)``, ``[u, x_t, j]`` is ``Q_{s->t}[j, x_t]``.
        q_bar: ``(n, K, K)``, ``[u, i, j]`` is ``Qbar_s[i, j]``.
        q_bar_t: ``(n, K, K)``, ``[u, i, j]`` is ``Qbar_t[i, j]``.
        common: ``(n, K)``, the mean of the rows of ``Qbar_s`` where they are so alike that what
            tells them apart is worth more digits; 0 elsewhere.
        parts: ``(n, 3, K, K)`` bfloat16, three that sum up to ``Qbar_s`` less what is common, in
            float32.
        s: ``(n,)`` int64, in continuous time float64.
    """

    q: Tensor
    q_bar: Tensor
    q_bar_t: Tensor
    common: Tensor
    parts: Tensor
    s: Tensor


_all_steps: WeakKeyDictionary[MatrixTransition, dict[torch.device, StepTables]]
_all_steps = WeakKeyDictionary()


def step_tables(step: MatrixStep) -> tuple[StepTables, Tensor]:
    """Return the steps that occur among others, and which of them each time's is.

    Returns:
        The tables, and int64 of the shape of t: n where there is no such step.
    """
    transition, t, s = step.chain, step.t, step.s
    n, size = transition.num_steps, transition.num_classes**2
    if s is None and ((2 * n + 1) * 8 + n * 3 * 2) * size <= transition.memory_budget:
        found = _all_steps.setdefault(transition, {})
        if t.device not in found:
            found[t.device] = _every_step(transition, t.device)
        exists = (t >= 1) & (t <= transition.num_steps)
        return found[t.device], (t - 1).where(exists, transition.num_steps)
    return _steps_of(transition, t, t - 1 if s is None else s)


def _every_step(transition: MatrixTransition, device: torch.device) -> StepTables:
    n, k = transition.num_steps, transition.num_classes
    q = torch.empty(n, k, k, dtype=torch.float64, device=device)
    q_bar = torch.empty(n + 1, k, k, dtype=torch.float64, device=device)
    for t in range(n + 1):
        q_bar[t] = _product(transition, 0, t)
        if t > 0:
            q[t - 1] = _product(transition, t - 1, t).T
    common = _common(q_bar[:-1])
    times = torch.arange(n, device=device)
    return StepTables(q, q_bar[:-1], q_bar[1:], common, _parts(q_bar[:-1], common), times)


def _steps_of(transition: MatrixTransition, t: Tensor, s: Tensor) -> tuple[StepTables, Tensor]:
    pairs, which = torch.stack([s, t]).flatten(1).unique(dim=1, return_inverse=True)
    good = [transition.exists(a, b) for a, b in pairs.T.tolist()]
    is_step = torch.tensor(good, dtype=torch.bool, device=t.device)
    steps = pairs.T[is_step].tolist()
    n, k = max(len(steps), 1), transition.num_classes  # a kernel may look at a step it drops
    q, q_bar, q_bar_t = torch.zeros(3, n, k, k, dtype=torch.float64, device=t.device)
    first = torch.zeros(n, dtype=transition.time_dtype, device=t.device)
    for u, (start, end) in enumerate(steps):
        q[u] = _entries(transition.step_matrix, transition.log_step_matrix, start, end).T
        q_bar[u] = _product(transition, 0, start)
        q_bar_t[u] = _product(transition, 0, end)
        first[u] = start
    place = (is_step.long().cumsum(0) - 1).where(is_step, n)
    common = _common(q_bar)
    tables = StepTables(q, q_bar, q_bar_t, common, _parts(q_bar, common), first)
    return tables, place[which].view(t.shape)


def _product(transition: MatrixTransition, s: float, t: float) -> Tensor:
    """Return the entries of ``Q_{s->t}``."""
    return _entries(transition.product, transition.log_product, s, t)


def _entries(
    matrix_of: Callable[..., Tensor], logs_of: Callable[..., Tensor], s: float, t: float
) -> Tensor:
    """Return a step's matrix with the logarithms of what is below float64's range in its place."""
    matrix = matrix_of(s, t)
    small = matrix < LEAST
    if not bool(small.any()):
        return matrix
    logs = logs_of(s, t)
    return matrix.where(~small | (logs == -torch.inf), logs)


def _common(q_bar: Tensor) -> Tensor:
    common = torch.zeros(q_bar.shape[::2], dtype=torch.float64, device=q_bar.device)
    for u, matrix in enumerate(q_bar):
        common[u] = matrix.mean(0) * is_mixed(matrix)
    return common


def _parts(q_bar: Tensor, common: Tensor) -> Tensor:
    n, k, _ = q_bar.shape
    parts = torch.empty(n, 3, k, k, dtype=torch.bfloat16, device=q_bar.device)
    for u in range(n):
        rest = (q_bar[u].clamp(min=0) - common[u]).float()
        for part in parts[u]:
            part.copy_(rest)
            rest = rest - part
    return parts
