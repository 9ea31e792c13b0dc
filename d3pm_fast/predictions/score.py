"""A prediction of the ratios of the probabilities at t, in place of one of x_0."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import ops
from .._checks import check_choice, check_logits, check_no_nan
from .._no_law import check_has_law
from ..chains import Transition
from ..chains.structures import RANK_ONE, RankOneStep
from ..choices import SCORE_STEPS, ScoreStep
from ..reference.logspace import compute_dtype, spread
from .logits import LogitsPrediction
from .prediction import Classes, Operations

__all__ = ["Score"]


class Score(NamedTuple):
    """What a network of score entropy predicts (SEDD, Lou et al. 2024): log-ratios of p_t.

    ``log_scores[..., j]`` is about ``log p_t(.. j ..) / p_t(.. x_t ..)``, where the two sequences
    differ in this one token. What stands at j = x_t is not read, and its gradient is 0. Chains of
    rank one take it in place of logits:

    * In the loss, in continuous time. Without s it is the bound's density at t in full (SEDD,
      eq. 7 and its constant). With s it is ``KL(q(x_s | x_t, x_0) || p(x_s | x_t))``, in plain
      PyTorch: it is for bounds. There is no prediction of x_0, hence no cross-entropy:
      ``ce_weight`` has to be 0, and ``loss_terms`` gives NaN for it.
    * In ``p_posterior``, ``p_sample``, ``sample`` and whatever else draws, where ``step`` says
      what ``p(x_s | x_t)`` is. Weights below 0, which only an inexact score has, count as 0, and
      the others are normalized. Computed in plain PyTorch, in float64.

    ``reverse`` and ``first_step`` have no say. A class that neither data nor the chain hold has no
    ratio: what stands there is not read.

    Attributes:
        log_scores: ``(B, *S, K)``, float32, float64, bfloat16 or float16; -inf for a ratio of 0.
        step: ``"analytic"``, Tweedie's formula (SEDD, eq. 19): ``p_s(j) Q[j, x_t]`` with p_s, the
            ratios at s, from those at t by the inverse of ``Q_{s->t}``. Exact for exact scores of
            one token. ``"euler"``, SEDD's step of tau-leaping: ``(t - s) R[j, x_t]`` times the
            score for j other than x_t, of continuous time only. A chain has to keep some of a
            token up to t, as ``alpha(1) > 0``, or scores at t say nothing of x_s.
    """

    log_scores: Tensor
    step: ScoreStep = "analytic"


class ScorePrediction(LogitsPrediction):
    """Log scores ``(B, *S, K)``, which are there as a whole."""

    predicts_x0 = False

    def __init__(self, given: Score, classes: Classes) -> None:
        super().__init__(given.log_scores, classes)
        self._step = given.step

    @property
    def operations(self) -> Operations:
        """The operations on scores, with the step that is asked for."""
        return _OPERATIONS[self._step]

    @property
    def result_dtype(self) -> torch.dtype:
        """Of log-probabilities: float32 or float64."""
        return compute_dtype(self.dtype)

    def check(self, shape: torch.Size) -> None:
        """Raise unless there is a step, and log scores are float, of shape ``(*shape, K)``."""
        check_choice("step", self._step, SCORE_STEPS)
        classes = Classes(self.num_classes, -1, *self.classes[2:])
        check_logits("log_scores", self.given, shape, classes)

    def check_chain(self, transition: Transition) -> None:
        """Raise unless the chain is of rank one."""
        if transition.structure != RANK_ONE.name:
            raise ValueError(f"a Score needs a rank-one chain, got {transition.family}")

    def check_loss(self, transition: Transition, ce_weight: float | Tensor) -> None:
        """Raise where a loss is asked for that scores have not."""
        self.check_chain(transition)
        if transition.has_steps:
            raise ValueError(
                "the loss of a Score is of continuous time, got a chain of "
                f"{transition.num_steps} steps"
            )
        if isinstance(ce_weight, Tensor) or ce_weight != 0:
            raise ValueError(
                f"ce_weight must be 0 for a Score, which predicts no x_0, got {ce_weight}"
            )

    def check_no_nan(self) -> None:
        """Raise for a NaN."""
        check_no_nan("log_scores", self.given)

    def check_drawn(self, drawn: Tensor, _x_t: Tensor) -> None:
        """Raise where a draw came from no law."""
        check_has_law(drawn)

    def step_record(self, transition: Transition, x_t: Tensor, t: Tensor, s: Tensor | None) -> Any:
        """Return the step that the law is of: the chain's, or to first order in t - s."""
        if self._step == "euler":
            return _first_order(transition, x_t, t, s)
        if transition.asks_tokens:
            raise ValueError(
                f"a Score has no analytic step of {transition.family}, whose mask stays: "
                "take step='euler'"
            )
        return super().step_record(transition, x_t, t, s)

    def _of(self, given: Tensor) -> ScorePrediction:
        return ScorePrediction(Score(given, self._step), self.classes)


_OPERATIONS = {
    step: Operations(ops.score_loss, ops.score_loss_and_grad, posterior, None, p_sample)
    for step, posterior, p_sample in (
        ("analytic", ops.analytic_posterior, ops.analytic_p_sample),
        ("euler", ops.euler_posterior, ops.euler_p_sample),
    )
}


def _first_order(transition: Transition, x_t: Tensor, t: Tensor, s: Tensor | None) -> RankOneStep:
    """Return steps with ``(t - s)`` times the rates at t, and ``Qbar_t``; they lead to s."""
    if transition.has_steps:
        raise ValueError("step='euler' is of continuous time: a chain of steps has no rates")
    assert s is not None  # checked by the operations
    record, _ = transition.loss_record(t)
    step: RankOneStep = transition.of_tokens(record, x_t=x_t)
    shape = step.rows.shape
    t, s = (spread(time, shape).reshape(-1) for time in (t, s))
    table = step.table[step.rows.flatten()].clone()
    table[:, 1:3] *= (t - s).unsqueeze(-1)
    table[:, 6] = s
    rows = torch.arange(len(table), device=t.device).view(shape)
    table = table.where(step.rows.view(-1, 1) >= 0, torch.nan)
    return RankOneStep(rows, table, *step[2:])
