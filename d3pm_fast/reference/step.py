"""What the operations need to know of a step ``x_t -> x_s``, whatever the chain's structure."""

from typing import Any, Protocol

import torch
from torch import Tensor

from ..chains.structures import MatrixStep, RankOneStep
from .dense import MatrixLogs, MatrixTables, look_up
from .rank_one import RankOneLogs


class StepLogs(Protocol):
    """Rows and columns of log-matrices for tokens ``(B, *S)``, each at its own step.

    ``Q`` is ``Q_{s->t}`` (``Q_t`` for s = t - 1), ``Qbar`` is ``Qbar_s``. All results are
    ``(B, *S, K)`` in the dtype of the calculation.
    """

    @property
    def forbidden(self) -> int:
        """The class that data never hold, or -1."""

    @property
    def target_time(self) -> Tensor:
        """s, float64 ``(B, *S, 1)``; NaN for a token whose step does not exist."""

    def allowed(self, logits: Tensor) -> Tensor:
        """Return logits of all classes, -inf for one that data never hold."""

    def log_q_column(self, x_t: Tensor) -> Tensor:
        """Return ``log Q[j, x_t]`` for every j."""

    def log_q_bar_t_column(self, x_t: Tensor) -> Tensor:
        """Return ``log Qbar_t[i, x_t]`` for every i."""

    def log_q_bar_row(self, x0: Tensor) -> Tensor:
        """Return ``log Qbar_s[x_0, j]`` for every j."""

    def log_predicted(self, log_x0: Tensor) -> Tensor:
        """Return ``log f``, ``f = s Qbar_s``, for a predicted ``log s``."""

    def without_step(self) -> "StepLogs":
        """Return the same where Q, the rates of a density, has had no time: s = t."""

    def tilt(self, logits: Tensor, x_t: Tensor) -> Tensor:
        """Return the log of ``s_i / Qbar_t[i, x_t]``, normalized over i; s is their softmax."""


_LOGS: dict[type, Any] = {RankOneStep: RankOneLogs, MatrixTables: MatrixLogs}


def looked_up(step: Any) -> Any:
    """Return a step's record with all that its chain has to be asked for, read once."""
    return look_up(step) if isinstance(step, MatrixStep) else step


def logs_of(step: Any, shape: tuple[int, ...], dtype: torch.dtype) -> StepLogs:
    """Return the logs of a step's record for logits of a shape ``(B, *S, K)``."""
    found = looked_up(step)
    made: StepLogs = _LOGS[type(found)].of(found, shape, dtype)
    return made
