"""The operations as stateless functions over a transition: checked here, computed below.

Shapes: tokens ``(B, *S)`` of any integer dtype with values in [0, K), S any number of position
axes, also none; ``t`` ``(B,)`` or, per token, ``(B, *S)``, in 1..T; ``logits`` ``(B, *S, K)``,
float32, float64, bfloat16 or float16, ``-inf`` for a forbidden class; or in their place a pair
``(loc, log_scale)``, see :class:`Logistic`, the :class:`Linear` head of a large vocabulary, the
:class:`Score` of a network of score entropy, :class:`Sharded` logits of tensor parallel heads, or,
to draw from, :class:`Shaped` logits. With ``class_dim=1`` logits and posteriors are ``(B, K, *S)``;
logits are then read without a copy where the classes are next to each other in memory, as in
``torch.channels_last``. float64 logits are calculated in float64, all others in float32, or, with a
chain that has a class entered with a probability below 1e-18 (``transition.needs_float64``), in
float64 too.

All functions take ``impl``, see :func:`d3pm_fast.implementation`, and raise

* ``TypeError`` for a wrong type or dtype,
* ``ValueError`` for a wrong shape, device or option,
* ``IndexError`` for a class or a time out of range (on the CPU, and anywhere with
  ``D3PM_FAST_CHECK=1`` in the environment at import; elsewhere such a token's result is NaN, and
  a draw -1).
"""

from ..predictions import Linear, Logistic, Score, Shaped, Sharded
from .count_open import Count, count_open
from .log_prob import LogProb, log_prob
from .logistic import logistic_logits
from .loss import LossTerms, loss, loss_terms
from .p_sample import p_sample
from .posterior import p_posterior, q_posterior
from .predict import PredictedTokens, predict
from .prior import prior, sample_prior
from .q_sample import q_sample
from .seeds import draw_seeds

__all__ = [
    "Count",
    "Linear",
    "LogProb",
    "Logistic",
    "LossTerms",
    "PredictedTokens",
    "Score",
    "Shaped",
    "Sharded",
    "count_open",
    "draw_seeds",
    "log_prob",
    "logistic_logits",
    "loss",
    "loss_terms",
    "p_posterior",
    "p_sample",
    "predict",
    "prior",
    "q_posterior",
    "q_sample",
    "sample_prior",
]
