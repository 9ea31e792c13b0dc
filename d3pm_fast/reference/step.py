"""What the operations need to know of a step ``x_t -> x_s``, whatever the chain's structure."""

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from ..chains import DenseTransition, RankOneTransition, SparseTransition, Transition
from .dense import MatrixStep
from .rank_one import RankOneStep


class Step(Protocol):
    """Rows and columns of log-matrices for tokens ``(B, *S)``, each at its own step.

    ``Q`` is ``Q_{s->t}`` (``Q_t`` for s = t - 1), ``Qbar`` is ``Qbar_s``. All results are
    ``(B, *S, K)`` in the dtype of the calculation.
    """

    @property
    def target_time(self) -> Tensor:
        """s, float64 ``(B, *S, 1)``; NaN for a token whose step does not exist."""

    def log_q_column(self, x_t: Tensor) -> Tensor:
        """Return ``log Q[j, x_t]`` for every j."""

    def log_q_bar_t_column(self, x_t: Tensor) -> Tensor:
        """Return ``log Qbar_t[i, x_t]`` for every i."""

    def log_q_bar_row(self, x0: Tensor) -> Tensor:
        """Return ``log Qbar_s[x_0, j]`` for every j."""

    def log_predicted(self, log_x0: Tensor) -> Tensor:
        """Return ``log f``, ``f = s Qbar_s``, for a predicted ``log s``."""

    def tilt(self, logits: Tensor, x_t: Tensor) -> Tensor:
        """Return the log of ``s_i / Qbar_t[i, x_t]``, normalized over i; s is their softmax."""


MakeStep = Callable[[tuple[int, ...], torch.dtype], Step]


def chain(transition: Transition, t: Tensor, s: Tensor | None = None) -> tuple[MakeStep]:
    """Return what the operations take after x_t: a maker of the step for a shape and a dtype."""
    if isinstance(transition, RankOneTransition):
        rows, table = transition.step_rows(t, s)
        vectors = transition.base, transition.base_cdf, transition.mask_id
        return (partial(RankOneStep.gather, rows, table, *vectors),)
    assert isinstance(transition, DenseTransition | SparseTransition)
    return (MatrixStep.maker(transition, t, t - 1 if s is None else s),)
