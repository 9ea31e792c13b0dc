"""A prediction of x_0 by two numbers a token, in place of K logits."""

from typing import NamedTuple

from torch import Tensor

from . import reference
from .ops.logistic import LogisticOperations
from .reference.logspace import compute_dtype

__all__ = ["Logistic"]


class Logistic(NamedTuple):
    """A truncated discretized logistic distribution for each token (D3PM, appendix A.8).

    Wherever logits are taken it may stand in their place, and so may the pair
    ``(loc, log_scale)``; see :func:`d3pm_fast.functional.logistic_logits`.

    Attributes:
        loc: ``(B, *S)``, float32, float64, bfloat16 or float16; the classes span [-1, 1].
        log_scale: of the shape and the dtype of loc.
        edge_corrected: whether the first and the last class take all the mass outside of them.
    """

    loc: Tensor
    log_scale: Tensor
    edge_corrected: bool = False


class LogisticMaker(NamedTuple):
    """What makes logits of the parameters of some items, and of their gradient the parameters'.

    Both calculate in the compute dtype of the parameters, and so are the gradients.

    Attributes:
        num_classes: K.
        edge_corrected: of the distribution.
        operations: of an implementation.
    """

    num_classes: int
    edge_corrected: bool
    operations: LogisticOperations

    def logits(self, loc: Tensor, log_scale: Tensor) -> Tensor:
        """Return the logits, ``(B, *S, K)``."""
        pair = _to_compute(loc, log_scale)
        return self.operations.logits(*pair, self.num_classes, self.edge_corrected)

    def pull(self, loc: Tensor, log_scale: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of both parameters from that of the logits."""
        pair = _to_compute(loc, log_scale)
        return self.operations.gradient(*pair, grad, self.edge_corrected)

    def meaning(self, loc: Tensor, log_scale: Tensor) -> Tensor:
        """Return the logits by plain PyTorch."""
        return reference.logistic_logits(loc, log_scale, self.num_classes, self.edge_corrected)


def _to_compute(loc: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
    dtype = compute_dtype(loc.dtype)
    return loc.to(dtype), log_scale.to(dtype)
