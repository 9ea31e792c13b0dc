"""The operations on rank-one chains, of each implementation.

All take contiguous tensors: tokens ``(B, *S)`` int64, logits ``(B, *S, K)``, and ``rows``,
``(B,)`` or ``(B, *S)`` int64: the row of ``table`` with the coefficients of each token's step
(:meth:`~d3pm_fast.transitions.RankOneTransition.coefficients`). ``reference/`` says what each one
means.
"""

from typing import Any

from torch import Tensor

from ..chains import RankOneTransition
from . import rank_one_cpu, rank_one_cuda
from .library import Deferred
from .operations import Operations


class RankOneOperations(Operations):
    """Those of one implementation."""

    def __init__(self, prefix: str, kernels: Any, dispatch_key: str, shapes: bool) -> None:
        shared = "Tensor rows, Tensor table"
        chain = f"{shared}, Tensor? base, Tensor? base_cdf, int mask_id"
        q_chain = f"{shared}, Tensor? base_cdf, int mask_id, int num_classes"
        super().__init__(prefix, kernels, dispatch_key, chain, q_chain, shapes)

    @staticmethod
    def chain(
        transition: RankOneTransition, t: Tensor, s: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, int]:
        """Return what the operations take after x_t."""
        rows, table = transition.step_rows(t, s)
        return rows, table, transition.base, transition.base_cdf, transition.mask_id

    def q_sample(self, x: Tensor, of: RankOneTransition, t: Tensor, *args: Any) -> Tensor:
        """Call the operation with what it needs of the transition."""
        table = of.products, of.base_cdf, of.mask_id, of.num_classes
        return self._q_sample(x, t, *table, *args)  # type: ignore[no-any-return]


cpu = RankOneOperations("", rank_one_cpu, "CPU", shapes=True)
cuda = RankOneOperations("cuda_", rank_one_cuda, "CompositeExplicitAutograd", shapes=False)
triton = RankOneOperations(
    "triton_",
    Deferred("d3pm_fast.kernels.rank_one_ops"),
    "CompositeExplicitAutograd",
    shapes=True,
)
