"""The operations on chains of matrices, of each implementation.

All take contiguous tensors: tokens ``(B, *S)`` int64, logits ``(B, *S, K)``, the times ``t`` and
``s``, ``(B,)`` or ``(B, *S)`` int64, s None for t - 1, and the number that a transition is
registered under. ``reference/`` says what each one means.
"""

from typing import Any

from torch import Tensor

from ..chains import DenseTransition, SparseTransition
from . import dense_cpu
from .library import Deferred
from .operations import Operations


class DenseOperations(Operations):
    """Those of one implementation."""

    def __init__(self, prefix: str, kernels: Any, dispatch_key: str) -> None:
        chain = "Tensor t, Tensor? s, int handle"
        super().__init__(prefix, kernels, dispatch_key, chain, "Tensor t, int handle")

    @staticmethod
    def chain(
        transition: DenseTransition | SparseTransition, t: Tensor, s: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, int]:
        """Return what the operations take after x_t."""
        return t, s, transition.handle

    def q_sample(
        self, x: Tensor, of: DenseTransition | SparseTransition, t: Tensor, *args: Any
    ) -> Tensor:
        """Call the operation with the transition's number."""
        return self._q_sample(x, t, of.handle, *args)  # type: ignore[no-any-return]


cpu = DenseOperations("dense_", dense_cpu, "CPU")
triton = DenseOperations(
    "triton_dense_", Deferred("d3pm_fast.kernels.dense.ops"), "CompositeExplicitAutograd"
)
