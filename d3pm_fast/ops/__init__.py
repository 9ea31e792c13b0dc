"""The registered operations, ``torch.ops.d3pm_fast.*``, and the choice among implementations.

One set for each structure of transitions and each implementation, all with the same functions,
and ``reference`` with them too. They trust their arguments: tokens are int64, all tensors
contiguous.
"""

from typing import Any

from .. import reference
from ..chains import RankOneTransition, Transition
from . import dense, logistic, rank_one, shaped
from .available import Implementations
from .implementations import Implementation, implementation

__all__ = [
    "Implementation",
    "Implementations",
    "implementation",
    "logistic",
    "operations",
    "shaped",
]


def operations(name: str, transition: Transition) -> Any:
    """Return the operations that serve a transition by the implementation of this name."""
    if name == "reference":
        return reference
    if not isinstance(transition, RankOneTransition):
        return dense.triton if name == "triton" else dense.cpu
    if name == "triton":
        return rank_one.triton
    return rank_one.cuda if name == "cuda" else rank_one.cpu
