"""The words that arguments choose by, as types: editors complete them, type checkers know them.

Code that passes such an argument on annotates it with the same type::

    def make(reverse: d3pm_fast.choices.Reverse) -> d3pm_fast.D3PM: ...
"""

from typing import Literal, get_args

__all__ = [
    "ClassDim",
    "FirstStep",
    "GraphMethod",
    "Impl",
    "Last",
    "LinearSchedule",
    "Order",
    "Reduction",
    "Reverse",
    "ScoreStep",
    "Spacing",
]

Reverse = Literal["joint", "posterior_mean"]
"""The reverse step of the model, ``p(x_s | x_t)``."""
FirstStep = Literal["posterior", "logits"]
"""The model of ``p(x_0 | x_1)``, and of every step to time 0."""
Impl = Literal["auto", "reference", "cpu", "triton", "cuda"]
"""The implementation that serves a call."""
Reduction = Literal["mean", "sum", "none", "batch"]
"""What is returned of the losses of all tokens."""
Last = Literal["sample", "argmax"]
"""What a sampler does in the step to time 0."""
Order = Literal["confidence", "raw_confidence", "margin", "entropy", "random"]
"""Which tokens are unmasked first, see :func:`d3pm_fast.samplers.unmask`."""
LinearSchedule = Literal["rows", "tiles"]
"""What a loss has of a head's logits at a time, see :class:`d3pm_fast.functional.Linear`."""
ScoreStep = Literal["analytic", "euler"]
"""The reverse step of a score, see :class:`d3pm_fast.functional.Score`."""
Spacing = Literal["uniform", "cosine", "log"]
"""How a sampler's times lie in continuous time."""
ClassDim = Literal[-1, 1]
"""The dimension that logits and log-probabilities have the classes in."""
GraphMethod = Literal["exponential", "sinkhorn"]
"""How the graph of nearest neighbours becomes a chain."""

REVERSES: tuple[Reverse, ...] = get_args(Reverse)
FIRST_STEPS: tuple[FirstStep, ...] = get_args(FirstStep)
IMPLS: tuple[Impl, ...] = get_args(Impl)
REDUCTIONS: tuple[Reduction, ...] = get_args(Reduction)
LASTS: tuple[Last, ...] = get_args(Last)
ORDERS: tuple[Order, ...] = get_args(Order)
LINEAR_SCHEDULES: tuple[LinearSchedule, ...] = get_args(LinearSchedule)
SCORE_STEPS: tuple[ScoreStep, ...] = get_args(ScoreStep)
SPACINGS: tuple[Spacing, ...] = get_args(Spacing)
CLASS_DIMS: tuple[ClassDim, ...] = get_args(ClassDim)
GRAPH_METHODS: tuple[GraphMethod, ...] = get_args(GraphMethod)
