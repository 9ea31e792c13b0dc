"""Noise schedules: each returns the betas of a diffusion of T steps, float64, shape (T,).

``betas[t - 1]`` is beta_t, the probability that step t of the paper's chain (t = 1..T) does
not keep a token as it is. ``alpha_bar_t = (1 - beta_1) ... (1 - beta_t)``.
Only :func:`mutual_information_times` returns times, for chains of matrix exponentials.
:mod:`d3pm_fast.schedules.continuous` has those of continuous time.
"""

from . import continuous as continuous
from .betas import (
    cosine,
    cosine_multinomial,
    cosine_squared,
    from_alpha_bars,
    from_betas,
    jsd,
    linear,
    quadratic,
    sigmoid,
)
from .mutual_information import mutual_information, mutual_information_times

__all__ = [
    "cosine",
    "cosine_multinomial",
    "cosine_squared",
    "from_alpha_bars",
    "from_betas",
    "jsd",
    "linear",
    "mutual_information",
    "mutual_information_times",
    "quadratic",
    "sigmoid",
]
